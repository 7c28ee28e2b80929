"""Kinds of command-line argument that more than one command takes."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """A whole number above 0; ``argparse`` names the argument when this raises."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)
