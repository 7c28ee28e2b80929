"""Meta-training on a CUDA device: what a CPU makes of the same recipe, up to rounding."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_run import meta_train
from test_classifier import episodes, make_bert, make_lstm
from test_elsewhere import OPTIONS, check_same, outer_loops
from test_elsewhere_judged import evaluated, gated, small_gate
from test_team import TWO, by_one, launched, learned, said_by, take_up
from test_training_run import checkpoint, interrupt_at
from torch.testing import assert_close

from adapters.artifact import load_artifact
from meta_training.classifier import Classifier
from meta_training.classify import train_classifier
from meta_training.recipe_parts import ALGORITHMS, OuterPart
from meta_training.tasks.classes import ClassEpisodes

__all__ = ["by_one", "episodes", "gated"]  # fixtures
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_outer_loop_learns_what_a_cpu_learns(
    algorithm: str, finished: Path, data: Path, tmp_path: Path
) -> None:
    here, there = outer_loops(finished, tmp_path)
    for folder, device in ((here, "cpu"), (there, "cuda")):
        arguments = ("--algorithm", algorithm, "--device", device)
        assert meta_train(data, folder, *arguments, outer={"steps": 3}) == 0
    check_same(here, there, algorithm)


@pytest.mark.parametrize(("inner", "outer"), OPTIONS)
def test_options_learn_what_a_cpu_learns(
    inner: dict[str, Any], outer: dict[str, Any], finished: Path, data: Path, tmp_path: Path
) -> None:
    here, there = outer_loops(finished, tmp_path)
    for folder, device in ((here, "cpu"), (there, "cuda")):
        parts = {"inner": inner, "outer": {"steps": 2} | outer}
        assert meta_train(data, folder, "--device", device, **parts) == 0
    check_same(here, there)


def test_every_stage_runs(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 16 bits, as on a CPU, before the outer loop."""
    small_gate(monkeypatch)
    assert meta_train(data, tmp_path, "--device", "cuda", inner={"gate": True}) == 0
    artifact = load_artifact(tmp_path / "maml" / "artifact")
    assert artifact.rule.gate is not None
    assert artifact.rule.gate.words is not None
    weights = checkpoint(tmp_path / "maml" / "checkpoint.pt")["parts"]["learner"]
    assert {tensor.device.type for tensor in weights.values()} == {"cpu"}


@pytest.mark.parametrize("devices", [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")])
def test_interrupted_it_goes_on_on_any_device(
    devices: tuple[str, str],
    finished: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, moving = outer_loops(finished, tmp_path)
    assert meta_train(data, here, "--device", devices[0]) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        codes = [meta_train(data, moving, "--device", device) for device in devices]
    assert codes == [130, 0]
    check_same(here, moving)


def test_an_artifact_is_judged_as_on_a_cpu(gated: Path, data: Path, tmp_path: Path) -> None:
    methods = ["ours", "ours-recall", "ours-prompt", "prototypical", "frozen", "in-context"]
    reports = []
    for device in ("cpu", "cuda"):
        copy = Path(shutil.copytree(gated / "maml" / "artifact", tmp_path / device / "artifact"))
        arguments = (copy, data, gated / "pretrained", methods, "--device", device)
        reports.append(evaluated(*arguments))
    assert_close(reports[1]["perplexity"], reports[0]["perplexity"], rtol=1e-3, atol=1e-3)
    assert reports[1]["cells"].keys() == reports[0]["cells"].keys()


@pytest.mark.parametrize("make", [make_lstm, make_bert])
@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "reptile"])
def test_a_classifier_learns_what_a_cpu_learns(
    make: Callable[[], Classifier], algorithm: str, episodes: ClassEpisodes
) -> None:
    """An LSTM in eval mode, twice differentiated; and fused attention, which has no second."""
    part = OuterPart.model_validate({"algorithm": algorithm, "steps": 3, "warmup_steps": 1})
    here, there = (
        train_classifier(make().to(device), episodes.draw, part) for device in ("cpu", "cuda")
    )
    assert_close(there, here, rtol=1e-3, atol=1e-4)


def test_processes_with_a_gpu_each_learn_what_one_learns(
    data: Path, by_one: Path, tmp_path: Path
) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    take_up(by_one, tmp_path)
    with launched(data, tmp_path, "cuda", **TWO) as process:
        said = said_by(process, tmp_path)
    assert process.returncode == 0, said
    assert_close(learned(tmp_path), learned(by_one), rtol=1e-3, atol=1e-4)
