"""Saves and restores a training run: parts with ``state_dict``, the step, the random generators.

Knows files, state dicts and Ctrl-C; knows nothing about what is trained.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from adapters.config import one_line
from meta_training.device import gpu_random, on_cpu, set_gpu_random


class CheckpointError(ValueError):
    """A run cannot go on from its checkpoint; the message names the file and what to do."""


class Stateful(Protocol):
    """Anything that can hand out and take back its state."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """Take back what ``state_dict`` gave."""
        ...


class Draws:
    """A random generator as a part of a checkpoint."""

    def __init__(self, rng: random.Random) -> None:
        """Save and restore ``rng`` itself, not a copy of it."""
        self._rng = rng

    def state_dict(self) -> dict[str, Any]:
        """Where the generator stands."""
        return {"random": self._rng.getstate()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        version, internal, gauss = state_dict["random"]
        self._rng.setstate((version, tuple(internal), gauss))


@dataclass(frozen=True)
class Resumed:
    """How far a run had come.

    ``exact``: its draws were restored too, so that it goes on as if it had never stopped.
    """

    step: int
    exact: bool


def save_checkpoint(
    path: Path, parts: Mapping[str, Stateful], draws: Mapping[str, Stateful], step: int
) -> None:
    """Write all parts, what they draw from and the step; a crash leaves the older file whole.

    Tensors are written from the CPU, so that a run goes on on any device.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "step": step,
        "parts": {name: on_cpu(part.state_dict()) for name, part in parts.items()},
        "draws": {name: part.state_dict() for name, part in draws.items()},
        "torch_random": torch.get_rng_state(),
        "python_random": random.getstate(),
    }
    gpu = gpu_random()
    if gpu is not None:
        content["gpu_random"] = gpu
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


def load_checkpoint(
    path: Path, parts: Mapping[str, Stateful], draws: Mapping[str, Stateful]
) -> Resumed:
    """Restore all parts in place, on the device where each is; step 0 where there is no file.

    Checkpoints written before draws were kept restore the parts alone.

    Raises:
        CheckpointError: the file is damaged, or was made with other shapes.
    """
    if not path.exists():
        return Resumed(0, False)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(content["parts"][name])
        kept = content.get("draws", {})
        exact = kept.keys() >= draws.keys()
        if exact:
            for name, part in draws.items():
                part.load_state_dict(kept[name])
        torch.set_rng_state(content["torch_random"])
        set_gpu_random(content.get("gpu_random"))
        version, internal, gauss = content["python_random"]
        random.setstate((version, tuple(internal), gauss))
        return Resumed(int(content["step"]), exact)
    except Exception as error:  # a damaged file surfaces as anything from EOFError to TypeError
        raise CheckpointError(
            f"{path} cannot be resumed from: {type(error).__name__}: {one_line(error)}; delete it "
            "to start this stage again, or take another folder"
        ) from error


@contextmanager
def whole_steps(in_team: bool = False) -> Iterator[threading.Event]:
    """Let Ctrl-C only set the event, so that no step is cut in half and what is saved fits.

    The loop inside looks at the event after each step, saves and raises ``KeyboardInterrupt``. A
    second Ctrl-C stops at once, with what was saved before. Where Ctrl-C is ignored, or this is
    not the main thread, nothing changes.

    ``in_team``: a launcher that is stopped sends its processes SIGTERM as well, which then means
    the same as a first Ctrl-C.
    """
    wanted = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield wanted
        return

    def note(number: int, frame: FrameType | None) -> None:
        wanted.set()
        signal.signal(signal.SIGINT, before)
        print("\nfinishing this step; Ctrl-C again stops at once", file=sys.stderr)

    signal.signal(signal.SIGINT, note)
    ending = signal.signal(signal.SIGTERM, lambda *_: wanted.set()) if in_team else None
    try:
        yield wanted
    finally:
        signal.signal(signal.SIGINT, before)
        if in_team:
            signal.signal(signal.SIGTERM, ending)
