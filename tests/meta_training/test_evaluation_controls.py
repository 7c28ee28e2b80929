"""Controls of ``evaluate`` that are artifacts of their own: judged on the same tasks, in pairs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from mini_run import evaluate

CELL = "label 5-way 1-shot"
ONE_CELL = ("--cells", "label", "5-way", "1-shot", "--episodes", 6)
Lines = dict[int, float]


def report_of(artifact: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact / "report.json").read_text("utf-8"))
    return found


def right(artifact: Path, method: str) -> Lines:
    """Share of queries right by task, after most steps."""
    lines = (artifact.parent / "results.jsonl").read_text("utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["method"] == method]
    return {row["task"]: row["figures"]["choice"] for row in rows}


def test_a_prototypical_network_is_judged_beside_an_artifact_in_pairs(
    artifact: Path, data: Path, other_algorithm: Callable[[str], Path]
) -> None:
    network = other_algorithm("prototypical")
    methods = ("--methods", "ours", "prototypical", "prototypical-network")
    assert evaluate(artifact, data, *ONE_CELL, *methods, "--prototypes", network) == 0
    assert evaluate(network, data, *ONE_CELL, "--methods", "prototypical") == 0
    control = right(artifact, "Prototypical Network")
    assert control == right(network, "nearest prototype, this base"), "as judged on its own"
    assert control != right(artifact, "nearest prototype, this base")
    point = report_of(artifact)["differences"][CELL]["Prototypical Network"]["-"]["choice"]
    served = report_of(artifact)["cells"][CELL]["innerloop"]["2 steps"]["choice"]["mean"]
    assert point["tasks"] == 6
    assert point["mean"] == pytest.approx(served - fmean(control.values()), abs=1e-4)
    assert point["low"] <= point["mean"] <= point["high"]
    assert "Prototypical Network" in (artifact.parent / "report.html").read_text("utf-8")


def test_another_prototypical_network_is_judged_anew(
    artifact: Path, finished: Path, data: Path, tmp_path: Path
) -> None:
    methods = (*ONE_CELL, "--methods", "prototypical-network", "--prototypes")
    same = shutil.copytree(finished / "maml" / "artifact", tmp_path / "same")
    results = artifact.parent / "results.jsonl"
    assert evaluate(artifact, data, *methods, finished / "maml" / "artifact") == 0
    before = results.read_bytes()
    assert evaluate(artifact, data, *methods, same) == 0
    assert results.read_bytes() == before
    rule = json.loads((same / "inner_rule.json").read_text("utf-8"))
    (same / "inner_rule.json").write_text(json.dumps(rule | {"clip": 0.5}), "utf-8")
    assert evaluate(artifact, data, *methods, same) == 0
    assert len(results.read_bytes()) > len(before)


def test_what_was_trained_for_examples_in_the_prompt_is_judged_by_them(
    data: Path, finished: Path, other_algorithm: Callable[[str], Path]
) -> None:
    """By its own base, which has other figures than the one that a person names."""
    metaicl = other_algorithm("in-context")
    methods = (*ONE_CELL, "--methods", "in-context")
    assert evaluate(metaicl, data, *methods) == 0
    own = "examples in the prompt, this base"
    (found,) = report_of(metaicl)["cells"].values()
    assert set(found) == {own}
    assert evaluate(metaicl, data, *methods, "--pretrained", metaicl) == 0
    (both,) = report_of(metaicl)["cells"].values()
    assert both["examples in the prompt"] == both[own] == found[own]
    assert evaluate(metaicl, data, *methods, "--pretrained", finished / "pretrained") == 0
    (other,) = report_of(metaicl)["cells"].values()
    assert other["examples in the prompt"] != other[own] == found[own]


@pytest.mark.parametrize("given", [False, True])
def test_methods_whose_folder_is_not_given_are_left_out(
    artifact: Path, data: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    monkeypatch.setattr("meta_training.evaluation.methods.LEARNING_RATES", (1e-2,))
    monkeypatch.setattr("meta_training.evaluation.methods.TUNING_TASKS", 1)
    pretrained = ("--pretrained", finished / "pretrained") if given else ()
    assert evaluate(artifact, data, *ONE_CELL, "--episodes", 1, *pretrained) == 0
    (methods,) = report_of(artifact)["cells"].values()
    assert {"innerloop", "TF-IDF nearest centroid", "nearest prototype, this base"} < set(methods)
    of_base = {"LoRA, pre-trained base", "nearest prototype, pre-trained base"}
    assert of_base & set(methods) == (of_base if given else set())
    assert "LoRA, multi-task base" not in methods
