"""Checkpoints restore everything or say why not; Ctrl-C never cuts a step in half."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from meta_training.checkpoint import (
    CheckpointError,
    Draws,
    Resumed,
    load_checkpoint,
    save_checkpoint,
    whole_steps,
)


def parts_of(width: int = 3) -> dict[str, nn.Linear]:
    return {"layer": nn.Linear(width, 2)}


def test_no_file_is_step_zero(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "none.pt", parts_of(), {}) == Resumed(0, False)


def test_parts_draws_and_generators_come_back(tmp_path: Path) -> None:
    path, rng = tmp_path / "deep" / "c.pt", random.Random(5)
    rng.gauss(0, 1)  # leaves a second number waiting
    parts, draws = parts_of(), {"rng": Draws(rng)}
    save_checkpoint(path, parts, draws, 7)
    expected = [rng.gauss(0, 1), rng.random(), random.random(), torch.rand(()).item()]

    other, fresh = random.Random(1), parts_of()
    random.seed(0)
    torch.manual_seed(0)
    assert load_checkpoint(path, fresh, {"rng": Draws(other)}) == Resumed(7, True)
    found = [other.gauss(0, 1), other.random(), random.random(), torch.rand(()).item()]
    assert found == expected
    assert torch.equal(fresh["layer"].weight, parts["layer"].weight)
    assert [p.name for p in path.parent.iterdir()] == ["c.pt"]


@pytest.mark.parametrize("kept", [None, {}, {"other": {}}])
def test_an_older_checkpoint_restores_its_parts(
    tmp_path: Path, kept: dict[str, Any] | None
) -> None:
    """From before draws were kept, or before one of them was."""
    path, parts = tmp_path / "c.pt", parts_of()
    save_checkpoint(path, parts, {}, 7)
    content = torch.load(path, weights_only=True)
    del content["draws"]
    torch.save(content if kept is None else content | {"draws": kept}, path)
    rng, fresh = random.Random(3), parts_of()
    assert load_checkpoint(path, fresh, {"rng": Draws(rng)}) == Resumed(7, False)
    assert torch.equal(fresh["layer"].weight, parts["layer"].weight)
    assert rng.random() == random.Random(3).random()


@pytest.mark.parametrize("content", [b"", b"no zip", None], ids=["empty", "garbage", "cut"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, parts_of(), {}, 7)
    path.write_bytes(path.read_bytes()[:-300] if content is None else content)
    with pytest.raises(CheckpointError, match="cannot be resumed from") as caught:
        load_checkpoint(path, parts_of(), {})
    assert str(path) in str(caught.value)
    assert "delete it" in str(caught.value)


def test_other_shapes_and_other_parts_are_named(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, parts_of(), {}, 7)
    with pytest.raises(CheckpointError, match="size mismatch"):
        load_checkpoint(path, parts_of(4), {})
    with pytest.raises(CheckpointError, match="KeyError: 'optimizer'"):
        load_checkpoint(path, parts_of() | {"optimizer": nn.Linear(1, 1)}, {})


class Broken:
    """A part that cannot be saved."""

    def state_dict(self) -> dict[str, Any]:
        raise OSError("no space left")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        raise AssertionError(state_dict)


def test_a_failed_save_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, parts_of(), {}, 7)
    before = path.read_bytes()
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(path, {"broken": Broken()}, {}, 8)
    assert path.read_bytes() == before


@pytest.fixture
def handler() -> Iterator[object]:
    """Python's own, which raises; put back whatever a test does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_the_first_interrupt_only_asks(handler: object, capsys: pytest.CaptureFixture[str]) -> None:
    with whole_steps() as stop:
        assert not stop.is_set()
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
    assert signal.getsignal(signal.SIGINT) is handler
    assert "again stops at once" in capsys.readouterr().err


def test_the_second_interrupt_stops(handler: object) -> None:
    with whole_steps():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_error_inside_puts_the_handler_back(handler: object) -> None:
    with pytest.raises(ZeroDivisionError), whole_steps():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is handler


def test_where_interrupts_are_ignored_they_stay_ignored(handler: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with whole_steps() as stop:
        signal.raise_signal(signal.SIGINT)
        assert not stop.is_set()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_another_thread_trains_without_touching_signals(handler: object) -> None:
    seen: list[object] = []

    def train() -> None:
        with whole_steps() as stop:
            seen.extend([stop.is_set(), signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [False, handler]
