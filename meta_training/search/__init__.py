"""Searching a recipe's outer and inner settings by trials on validation tasks."""
