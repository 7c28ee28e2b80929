"""Every stage on a device that is not the CPU, pretended: nothing is left behind, all is the same.

A tensor that is made on the wrong device stops the run here as it would on a GPU. Figures are the
same up to rounding: there some operations are done in several.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from elsewhere import AWAY, Away, MixedDevicesError, elsewhere
from mini_run import meta_train
from test_own_base import base, own_data, train
from test_training_run import checkpoint, interrupt_at, same
from torch.testing import assert_close

from adapters.artifact import load_artifact
from adapters.device import CPU
from meta_training.recipe_parts import ALGORITHMS
from meta_training.warm_start import KnownTasks, warm_start

__all__ = ["base", "own_data"]  # fixtures
OPTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"scope": "full"}, {}),
    ({"sizes": "element"}, {"gradient": "adjoint"}),
    ({}, {"base": "lora"}),
    ({}, {"base": "frozen", "wrong_share": 0.5}),
    ({}, {"batches": 2, "selection": "agreement"}),
    ({}, {"selection": "difficulty"}),
    ({}, {"families": {"verdict": 1, "rating": 1}, "batches": 2}),
]
FIRST_STAGES = ("embedded.pt", "recipe.json", "pretrained")


def take_up(made: Path, folder: Path) -> Path:
    """Begin a run where an earlier one began its outer loop."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FIRST_STAGES:
        path = made / name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / name)
    return folder


def outer_loops(finished: Path, folder: Path) -> tuple[Path, Path]:
    """Two folders for outer loops after the same stages: here, and elsewhere."""
    return take_up(finished, folder / "here"), take_up(finished, folder / "away")


def check_same(here: Path, away: Path, algorithm: str = "maml") -> None:
    """Both learned the same from the same draws, and wrote it in the same form."""
    found, expected = (checkpoint(run / algorithm / "checkpoint.pt") for run in (away, here))
    assert same(found["draws"]["loop"], expected["draws"]["loop"])
    assert_close(found["parts"]["learner"], expected["parts"]["learner"], rtol=1e-3, atol=1e-4)
    artifacts = [load_artifact(run / algorithm / "artifact") for run in (away, here)]
    assert_close(*(artifact.session_init for artifact in artifacts), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda far, near: far + near,
        lambda far, near: near[far.long()],
        lambda far, near: far.index_select(0, near.long()),
        lambda far, near: torch.stack([far.sum(), near.sum()]),
        lambda far, near: torch.where(near > 0, far, far),
        lambda far, near: far @ near,
    ],
)
def test_the_other_device_is_as_strict_as_a_gpu(
    monkeypatch: pytest.MonkeyPatch, mixed: Callable[[Any, Any], object]
) -> None:
    with elsewhere(monkeypatch) as device:
        far, near = torch.ones(2, device=device), torch.ones(2)
        with pytest.raises(MixedDevicesError):
            mixed(far, near)


def test_the_other_device_allows_what_a_gpu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    with elsewhere(monkeypatch) as device:
        far = torch.tensor([1.0, 2.0], device=device)
        assert isinstance(far, Away)
        assert far.device.type == AWAY.type
        assert (far * torch.tensor(3.0)).tolist() == [3.0, 6.0]
        assert far[torch.tensor([1])].tolist() == [2.0]
        assert torch.ones(2).copy_(far).tolist() == [1.0, 2.0]
        assert type(far.cpu()) is torch.Tensor
        far[0] = 5
        assert far.tolist() == [5.0, 2.0]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_outer_loop_is_the_same_elsewhere(
    algorithm: str, finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, away = outer_loops(finished, tmp_path)
    arguments, outer = ("--algorithm", algorithm), {"steps": 2}
    assert meta_train(data, here, *arguments, outer=outer) == 0
    with elsewhere(monkeypatch):
        assert meta_train(data, away, *arguments, outer=outer) == 0
    check_same(here, away, algorithm)


@pytest.mark.parametrize(("inner", "outer"), OPTIONS)
def test_options_are_the_same_elsewhere(
    inner: dict[str, Any],
    outer: dict[str, Any],
    finished: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, away = outer_loops(finished, tmp_path)
    outer = {"steps": 2} | outer
    assert meta_train(data, here, inner=inner, outer=outer) == 0
    with elsewhere(monkeypatch):
        assert meta_train(data, away, inner=inner, outer=outer) == 0
    check_same(here, away)


@pytest.mark.parametrize("begins_away", [True, False])
def test_a_run_goes_on_on_another_device(
    begins_away: bool,
    finished: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, moving = outer_loops(finished, tmp_path)
    assert meta_train(data, here) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        codes = []
        for away in (begins_away, not begins_away):
            if away:
                with elsewhere(monkeypatch):
                    codes.append(meta_train(data, moving))
            else:
                codes.append(meta_train(data, moving))
    assert codes == [130, 0]
    check_same(here, moving)


def test_a_base_and_tasks_of_ones_own_are_the_same_elsewhere(
    own_data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs, preferences, grouped-query attention and a sliding window."""
    assert train(own_data, base, tmp_path / "here") == 0
    with elsewhere(monkeypatch):
        assert train(own_data, base, tmp_path / "away") == 0
    check_same(tmp_path / "here", tmp_path / "away")


def test_a_warm_start_is_the_same_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(device: torch.device) -> list[float]:
        generator = torch.Generator().manual_seed(0)
        shapes = ((4, 6), (4, 2, 3), (2, 3), (2, 6))  # of four known tasks, for two sessions
        keys, adapted, init, asked = (
            torch.randn(shape, generator=generator).to(device) for shape in shapes
        )
        known = KnownTasks(keys, {"layer": adapted})
        return warm_start(known, {"layer": init}, asked, 2)["layer"].flatten().tolist()

    here = start(CPU)
    with elsewhere(monkeypatch) as device:
        assert start(device) == pytest.approx(here)
