"""A whole run in small: every stage, interrupted at any of them, ends as if it never stopped."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_run import STEPS, meta_train
from torch import Tensor

from adapters.artifact import load_artifact
from adapters.spelling import BUCKETS
from meta_training import gating
from meta_training.evaluation.cells import Cell
from meta_training.pretrain import TextRows
from meta_training.recipe import Recipe
from meta_training.team import Team

EMBED = STEPS["pretrain"]  # batches of text drawn before each stage
OUTER = EMBED + STEPS["embed"]
CHECKPOINTS = {0: "pretrained/checkpoint.pt", EMBED: "embedded.pt", OUTER: "maml/checkpoint.pt"}


def interrupt_at(monkeypatch: pytest.MonkeyPatch, *batches: int) -> None:
    """Press Ctrl-C while a step draws its text: in one of the batches counted over all stages.

    A batch named twice gets two of them.
    """
    drawn = 0
    original = TextRows.batch

    def batch(self: TextRows, rows: int) -> Tensor:
        nonlocal drawn
        for _ in range(batches.count(drawn)):
            signal.raise_signal(signal.SIGINT)
        drawn += 1
        return original(self, rows)

    monkeypatch.setattr(TextRows, "batch", batch)


def checkpoint(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def same(a: object, b: object) -> bool:
    """Equal bit for bit, tensors inside included."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def check_same_end(folder: Path, finished: Path) -> None:
    for name in CHECKPOINTS.values():
        if (finished / name).exists():
            assert same(checkpoint(folder / name), checkpoint(finished / name)), name
    artifacts = [load_artifact(run / "maml" / "artifact") for run in (folder, finished)]
    assert artifacts[0].fingerprint == artifacts[1].fingerprint
    assert artifacts[0].rule_hash == artifacts[1].rule_hash
    assert progress(folder) == progress(finished)


def progress(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "maml" / "progress.jsonl").read_text("utf-8").splitlines()
    rows: list[dict[str, float]] = [json.loads(line) for line in lines]
    for row in rows:
        assert row.pop("time_s") > 0
    return rows


def test_a_run_leaves_an_artifact(finished: Path, recipe: Recipe) -> None:
    artifact = load_artifact(finished / "maml" / "artifact")
    assert artifact.spec.rank == recipe.inner.rank
    assert artifact.rule.steps == recipe.inner.steps
    assert len(artifact.rule.anchors) == recipe.inner.anchors
    assert artifact.rule.gate is None
    assert artifact.context_tokens == recipe.model.context_tokens
    assert Recipe.model_validate((artifact.report or {})["recipe"]) == recipe
    tensors = artifact.session_init
    assert all(bool(tensors[name].any()) for name in tensors), "B is zero before it is learned"


def test_every_stage_reached_its_last_step(finished: Path) -> None:
    assert checkpoint(finished / "embedded.pt")["step"] == STEPS["embed"]
    assert checkpoint(finished / "maml" / "checkpoint.pt")["step"] == STEPS["outer"]
    (row,) = progress(finished)
    assert row["step"] == STEPS["outer"]
    assert all(math.isfinite(value) for value in row.values())


def test_the_outer_loop_moves_everything_it_learns(finished: Path) -> None:
    before = checkpoint(finished / "embedded.pt")["parts"]["model"]
    after = checkpoint(finished / "maml" / "checkpoint.pt")["parts"]["learner"]
    assert all(not torch.equal(before[name], after[f"model.{name}"]) for name in before)
    assert len(torch.unique(after["log_sizes"])) > 1


def test_the_same_run_again_is_the_same(finished: Path, data: Path, tmp_path: Path) -> None:
    assert meta_train(data, tmp_path) == 0
    check_same_end(tmp_path, finished)


@pytest.mark.parametrize(
    ("batch", "stage"), [(EMBED - 1, 0), (OUTER, OUTER)], ids=["last of a stage", "first of one"]
)
def test_interrupted_and_resumed_is_the_same(
    finished: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    stage: int,
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, batch)
        assert meta_train(data, tmp_path) == 130
    assert checkpoint(tmp_path / CHECKPOINTS[stage])["step"] == batch - stage + 1
    assert not (tmp_path / "maml" / "artifact").exists()
    assert meta_train(data, tmp_path) == 0
    check_same_end(tmp_path, finished)


def test_interrupted_in_every_stage(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1, EMBED, OUTER, OUTER + 1)
        codes = [meta_train(data, tmp_path) for _ in range(5)]
    assert codes == [130, 130, 130, 130, 0]
    check_same_end(tmp_path, finished)


def test_a_second_interrupt_falls_back_to_what_was_saved(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, OUTER + 1, OUTER + 3, OUTER + 3)
        assert [meta_train(data, tmp_path) for _ in range(2)] == [130, 130]
    assert checkpoint(tmp_path / "maml" / "checkpoint.pt")["step"] == 2
    assert meta_train(data, tmp_path) == 0
    check_same_end(tmp_path, finished)


def test_checkpoints_from_before_draws_were_kept_go_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1, EMBED + 1, OUTER + 1)
        for name in CHECKPOINTS.values():
            assert meta_train(data, tmp_path) == 130
            content = checkpoint(tmp_path / name)
            assert content.pop("draws")
            assert content["step"] == 2
            torch.save(content, tmp_path / name)
        assert meta_train(data, tmp_path) == 0
    assert checkpoint(tmp_path / "maml" / "checkpoint.pt")["step"] == STEPS["outer"]


def test_done_stages_are_not_done_again(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 0)
        assert meta_train(data, folder) == 0, "no step was left to interrupt"
    check_same_end(folder, finished)


@pytest.mark.parametrize(
    ("algorithm", "moved"),
    [
        ("maml++", {"model", "adapter", "log_sizes"}),
        ("meta-sgd", {"model", "adapter", "log_sizes", "log_factors"}),
        ("anil", {"model", "adapter", "log_sizes"}),
        ("reptile", {"model", "adapter"}),
        ("prototypical", {"model"}),
        ("matching", {"model"}),
        ("siamese", {"model"}),
        ("in-context", {"model"}),
    ],
)
def test_every_algorithm_leaves_an_artifact(
    finished: Path, data: Path, tmp_path: Path, algorithm: str, moved: set[str]
) -> None:
    shutil.copytree(finished / "pretrained", tmp_path / "pretrained")
    shutil.copy(finished / "embedded.pt", tmp_path)
    shutil.copy(finished / "recipe.json", tmp_path)
    assert meta_train(data, tmp_path, "--algorithm", algorithm, outer={"steps": 1}) == 0
    before = checkpoint(tmp_path / "embedded.pt")["parts"]["model"]
    after = checkpoint(tmp_path / algorithm / "checkpoint.pt")["parts"]["learner"]
    found = {"model"} if not same(before, _below(after, "model.")) else set()
    if len(torch.unique(after["log_sizes"])) > 1:
        found.add("log_sizes")
    if any(bool(factors.any()) for factors in _below(after, "log_factors.").values()):
        found.add("log_factors")
    artifact = load_artifact(tmp_path / algorithm / "artifact")
    if any(bool(t.any()) for n, t in artifact.session_init.items() if n.endswith("lora_B")):
        found.add("adapter")
    assert found == moved
    assert (artifact.rule.factors is not None) == (algorithm == "meta-sgd")
    assert bool(artifact.rule.still) == (algorithm == "anil")


@pytest.mark.parametrize("base", ["lora", "frozen"])
def test_a_base_that_is_not_learned_as_a_whole(
    finished: Path, data: Path, tmp_path: Path, base: str
) -> None:
    shutil.copytree(finished / "pretrained", tmp_path / "pretrained")
    shutil.copy(finished / "embedded.pt", tmp_path)
    shutil.copy(finished / "recipe.json", tmp_path)
    outer = {"steps": 2, "base": base, "gradient": "adjoint"}
    assert meta_train(data, tmp_path, outer=outer) == 0
    before = checkpoint(tmp_path / "embedded.pt")["parts"]["model"]
    weights = load_artifact(tmp_path / "maml" / "artifact").model.state_dict()
    moved = {
        n for n, tensor in weights.items() if not torch.equal(tensor, before[n].bfloat16().float())
    }
    targets = (
        *("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight"),
        *("gate_proj.weight", "up_proj.weight", "down_proj.weight"),
    )
    assert moved == (set() if base == "frozen" else {n for n in weights if n.endswith(targets)})


def test_a_step_that_overflows_is_skipped_and_counted(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / "pretrained", tmp_path / "pretrained")
    shutil.copy(finished / "embedded.pt", tmp_path)
    shutil.copy(finished / "recipe.json", tmp_path)
    factors = [1.0, math.nan, 1.0]  # of an outer step's gradients

    def average(self: Team, learned: Sequence[Tensor], parts: int) -> None:
        factor = factors.pop(0)
        for parameter in learned:
            if parameter.grad is not None:
                parameter.grad *= factor

    monkeypatch.setattr(Team, "average", average)
    assert meta_train(data, tmp_path, outer={"steps": 3}) == 0
    (row,) = progress(tmp_path)
    assert row["skipped"] == pytest.approx(0.05 * 0.95)
    assert all(math.isfinite(value) for value in row.values())


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


@pytest.mark.parametrize("algorithm", ["fomaml", "multitask"])
def test_the_other_algorithms_share_the_first_stages(
    finished: Path, data: Path, tmp_path: Path, algorithm: str
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    assert meta_train(data, folder, "--algorithm", algorithm, outer={"steps": 2}) == 0
    sizes = checkpoint(folder / algorithm / "checkpoint.pt")["parts"]["learner"]["log_sizes"]
    assert (len(torch.unique(sizes)) > 1) == (algorithm == "fomaml")
    assert load_artifact(folder / algorithm / "artifact").report is not None
    assert (folder / "maml" / "artifact").exists()


def test_without_the_embed_stage(finished: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "pretrained", tmp_path / "pretrained")
    assert meta_train(data, tmp_path, embed={"steps": 0}, outer={"steps": 1}) == 0
    assert not (tmp_path / "embedded.pt").exists()


def test_a_gate_is_chosen_last(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gating, "EPISODES", 1)
    monkeypatch.setattr(gating, "MEMORY_TASKS", 2)
    monkeypatch.setattr(gating, "MEMORY_TASKS_AT_ONCE", 2)
    monkeypatch.setattr(gating, "MEMORY_CELLS", (Cell("label", 2, 1),))
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    (folder / "maml" / "recipe.json").unlink()  # the outer loop is the same without a gate
    shutil.rmtree(folder / "maml" / "artifact")
    assert meta_train(data, folder, inner={"gate": True}) == 0
    artifact = load_artifact(folder / "maml" / "artifact")
    gate = artifact.rule.gate
    assert gate is not None
    assert -1 <= gate.threshold <= 1
    assert gate.mix in gating.MIXES
    assert gate.words is not None
    assert gate.words.vectors.shape == (BUCKETS, 96)
    before = load_artifact(finished / "maml" / "artifact")
    assert artifact.fingerprint == before.fingerprint
    assert artifact.rule_hash != before.rule_hash


def test_a_finished_run_keeps_its_report(finished: Path, data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    path = folder / "maml" / "artifact" / "report.json"
    judged = json.loads(path.read_text("utf-8")) | {"cells": {"label": 1}}
    path.write_text(json.dumps(judged), encoding="utf-8")
    assert meta_train(data, folder) == 0
    assert json.loads(path.read_text("utf-8")) == judged
