"""Saves and restores a training run: parts with ``state_dict``, the step, the random generators.

Knows files and state dicts; knows nothing about what is trained.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch


class Stateful(Protocol):
    """Anything that can hand out and take back its state."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """Take back what ``state_dict`` gave."""
        ...


def save_checkpoint(path: Path, parts: Mapping[str, Stateful], step: int) -> None:
    """Write all parts, the step and the random states; a crash leaves the older file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "step": step,
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "torch_random": torch.get_rng_state(),
        "python_random": random.getstate(),
    }
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


def load_checkpoint(path: Path, parts: Mapping[str, Stateful]) -> int:
    """Restore all parts in place and return the step reached; 0 where there is no file.

    Raises:
        RuntimeError: the file was made with other shapes; delete it or take another folder.
    """
    if not path.exists():
        return 0
    content = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(content["parts"][name])
    torch.set_rng_state(content["torch_random"])
    version, internal, gauss = content["python_random"]
    random.setstate((version, tuple(internal), gauss))
    return int(content["step"])
