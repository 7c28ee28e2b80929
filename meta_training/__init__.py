"""The offline half: turns a base model and tasks into an artifact that adapts in a few steps."""
