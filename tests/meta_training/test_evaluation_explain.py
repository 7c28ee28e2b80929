"""What moved an adapter: the same numbers as adapting without an example, by the plain way."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_run import evaluate
from spoken import KNOWN, make_spoken
from transformers import PreTrainedTokenizerFast

from adapters.norms import weight_change
from adapters.state import Tensors
from meta_training.evaluation.adapted import adapted
from meta_training.evaluation.cells import Task
from meta_training.evaluation.explain import explain_task
from meta_training.evaluation.relative import QueryLoss
from meta_training.learner import Learner
from meta_training.tasks.episodes import Episode, Turn

SWAPPED = [(KNOWN[n][0], KNOWN[n ^ 1][1]) for n in range(4)]
"""Questions with another's answer, which is to be learned."""


@pytest.fixture(scope="module")
def learner(tokenizer: PreTrainedTokenizerFast) -> Learner:
    learner = make_spoken(tokenizer)
    with torch.no_grad():
        learner.log_sizes.fill_(math.log(0.3))
    return learner


def task(count: int) -> Task:
    support = tuple(Turn(question, answer, question) for question, answer in SWAPPED[:count])
    query = support[:1]
    return Task(Episode("house_reply", support, query, (), frozenset()), ())


def adapter(learner: Learner, of: Task, steps: int | None = None) -> Tensors:
    return {name: rows[0] for name, rows in adapted(learner, [of], steps).tensors.items()}


@pytest.mark.parametrize("at_once", [1, 3])
def test_each_example_is_left_out_of_the_support(learner: Learner, at_once: int) -> None:
    whole = task(4)
    found = explain_task(learner, whole, at_once)
    support = whole.episode.support
    loss = QueryLoss(learner).scores([whole])["-"][0]["loss"]
    assert found["loss"] == pytest.approx(loss, abs=1e-4)
    start, moved = adapter(learner, whole, 0), adapter(learner, whole)
    way = weight_change(moved, start, learner.spec.scale)
    assert way > 0
    told = {one["question"]: one for one in found["examples"]}
    assert set(told) == {turn.question for turn in support}
    for turn in support:
        rest = tuple(other for other in support if other is not turn)
        without = replace(whole, episode=replace(whole.episode, support=rest))
        other = QueryLoss(learner).scores([without])["-"][0]["loss"]
        assert told[turn.question]["loss_change"] == pytest.approx(other - loss, abs=2e-4)
        away = weight_change(moved, adapter(learner, without), learner.spec.scale)
        assert told[turn.question]["share"] == pytest.approx(away / way, abs=2e-3)


def test_what_helps_comes_first_and_what_does_harm_is_below_zero(learner: Learner) -> None:
    """The second question is much like the first, whose untaught answer it is taught."""
    found = explain_task(learner, task(4), 4)
    changes = [one["loss_change"] for one in found["examples"]]
    assert found["examples"][0]["question"] == SWAPPED[0][0]
    assert changes == sorted(changes, reverse=True)
    assert changes[0] > 0 > changes[-1]
    assert found["examples"][-1]["question"] == SWAPPED[1][0]


def test_without_the_only_example_there_is_the_start(learner: Learner) -> None:
    found = explain_task(learner, task(1), 4)
    (example,) = found["examples"]
    assert example["share"] == 1.0
    gained = found["loss_start"] - found["loss"]
    assert example["loss_change"] == pytest.approx(gained, abs=2e-4)


def test_modules_have_the_norm_of_what_is_added(learner: Learner) -> None:
    whole = task(2)
    modules = explain_task(learner, whole, 4)["modules"]
    start, moved = adapter(learner, whole, 0), adapter(learner, whole)
    assert {f"{name}.lora_A" for name in modules} == {n for n in start if n.endswith("lora_A")}
    for name, norm in modules.items():
        a, b = f"{name}.lora_A", f"{name}.lora_B"
        added = learner.spec.scale * (moved[b] @ moved[a] - start[b] @ start[a])
        assert norm == pytest.approx(float(added.detach().norm()), abs=2e-4)


def test_what_is_no_number_is_none(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "log_sizes", torch.nn.Parameter(learner.log_sizes + math.inf))
    found = explain_task(learner, task(2), 4)
    assert found["loss"] is None
    assert all(one["loss_change"] is None for one in found["examples"])
    json.dumps(found, allow_nan=False)


def test_a_report_and_its_page_explain_what_is_asked_for(artifact: Path, data: Path) -> None:
    def report(*more: object) -> dict[str, Any]:
        cell = ("--cells", "house_reply", "3-way", "1-shot", "--episodes", 1, "--methods", "ours")
        assert evaluate(artifact, data, *cell, *more) == 0
        found: dict[str, Any] = json.loads((artifact / "report.json").read_text("utf-8"))
        return found

    told = report("--explain", 2)["explained"]
    assert told["cell"] == "house_reply 3-way 1-shot"
    assert [len(one["examples"]) for one in told["tasks"]] == [3, 3]
    page = (artifact.parent / "report.html").read_text("utf-8")
    assert "What moved the adapter" in page
    assert page.count("loss without it") == 2
    for name in told["tasks"][0]["modules"]:
        assert name in page
    assert report()["explained"] == {}
    assert "What moved the adapter" not in (artifact.parent / "report.html").read_text("utf-8")
