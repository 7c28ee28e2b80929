"""The gate, judgements and searches on a device that is not the CPU, pretended: all is the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from elsewhere import elsewhere
from mini_run import call, evaluate, meta_train
from test_search import begin, lines, search
from test_training_run import checkpoint
from torch.testing import assert_close

from adapters.artifact import load_artifact
from meta_training import gating, select_command
from meta_training.evaluation.cells import Cell
from meta_training.evaluation.methods import PlainLora

ONE_CELL = ("--cells", "label", "5-way", "1-shot", "--episodes", 2, "--queries", 1)


def small_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a gate be chosen in seconds."""
    monkeypatch.setattr(gating, "EPISODES", 1)
    monkeypatch.setattr(gating, "MEMORY_TASKS", 2)
    monkeypatch.setattr(gating, "MEMORY_TASKS_AT_ONCE", 2)
    monkeypatch.setattr(gating, "MEMORY_CELLS", (Cell("label", 2, 1),))


@pytest.fixture(scope="module")
def gated(finished: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run with a gate that has words."""
    folder = Path(shutil.copytree(finished, tmp_path_factory.mktemp("gated") / "run"))
    (folder / "maml" / "recipe.json").unlink()
    shutil.rmtree(folder / "maml" / "artifact")
    with pytest.MonkeyPatch.context() as patch:
        small_gate(patch)
        assert meta_train(data, folder, inner={"gate": True}) == 0
    return folder


def test_every_stage_runs_elsewhere(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_gate(monkeypatch)
    with elsewhere(monkeypatch):
        assert meta_train(data, tmp_path, inner={"gate": True}) == 0
    for name in ("embedded.pt", "maml/checkpoint.pt"):
        assert checkpoint(tmp_path / name)["parts"], "it can be read without the device"
    assert load_artifact(tmp_path / "maml" / "artifact").rule.gate is not None


def test_a_gate_is_the_same_elsewhere(
    gated: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(gated, tmp_path / "run"))
    shutil.rmtree(folder / "maml" / "artifact")
    shutil.rmtree(folder / "maml" / "words")
    small_gate(monkeypatch)
    with elsewhere(monkeypatch):
        assert meta_train(data, folder, inner={"gate": True}) == 0
    found, expected = (
        load_artifact(run / "maml" / "artifact").rule.gate for run in (folder, gated)
    )
    assert found is not None
    assert expected is not None
    assert found.mix == expected.mix
    assert found.threshold == pytest.approx(expected.threshold, abs=2e-3)
    assert found.words is not None
    assert expected.words is not None
    assert_close(found.words.table, expected.words.table, rtol=1e-2, atol=2e-2)


def evaluated(
    artifact: Path, data: Path, pretrained: Path, methods: list[str], *more: object
) -> dict[str, Any]:
    arguments = (*ONE_CELL, "--pretrained", pretrained, "--methods", *methods, *more)
    assert evaluate(artifact, data, *arguments) == 0
    report: dict[str, Any] = json.loads((artifact / "report.json").read_text("utf-8"))
    assert report.pop("cost")
    return report


def test_every_method_scores_the_same_elsewhere(
    gated: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meta_training.evaluation.methods.LEARNING_RATES", (1e-2,))
    monkeypatch.setattr("meta_training.evaluation.methods.TUNING_TASKS", 1)
    monkeypatch.setattr("meta_training.evaluation.methods.LORA_STEPS", (2,))
    monkeypatch.setattr(PlainLora, "checkpoints", ("2 steps",))
    methods = ["ours", "ours-recall", "ours-prompt", "tfidf", "prototypical", "matching", "siamese"]
    methods += ["frozen", "in-context", "lora"]
    copies = [tmp_path / place / "artifact" for place in ("here", "away")]
    for copy in copies:
        shutil.copytree(gated / "maml" / "artifact", copy)
    here = evaluated(copies[0], data, gated / "pretrained", methods)
    with elsewhere(monkeypatch):
        away = evaluated(copies[1], data, gated / "pretrained", methods)
    assert away == here


def test_a_selection_is_the_same_elsewhere(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = finished / "maml" / "artifact"
    told = []
    for place in ("here", "away"):
        saved, lines = tmp_path / f"{place}.json", tmp_path / f"{place}.jsonl"
        arguments = ("--reference", artifact, "--data", data, "--tasks", 2, "--save", saved)
        more = ("--results", lines, "--cells", "1-shot", "1-way")
        if place == "here":
            assert call(select_command, artifact, *arguments, *more) == 0
        else:
            with elsewhere(monkeypatch):
                assert call(select_command, artifact, *arguments, *more) == 0
        told.append(lines.read_text("utf-8"))
    assert told[0]
    assert told[0] == told[1]


def test_a_search_is_the_same_elsewhere(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [begin(finished, tmp_path / place) for place in ("here", "away")]
    assert search(data, folders[0], trials=1) == 0
    with elsewhere(monkeypatch):
        assert search(data, folders[1], trials=1) == 0
    found = [lines(folder) for folder in folders]
    assert [row["score"]["tasks"] for row in found[0]] == [4, 4]
    for here, away in zip(*found, strict=True):
        assert_close(away["score"], here["score"], rtol=1e-2, atol=1e-3)
