"""The online half: serves a base model over HTTP while every session teaches its own adapter."""
