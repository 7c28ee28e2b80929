"""``innerloop search`` on a model of seconds: found, stopped, failed, interrupted and resumed."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mini_run import RECIPE, STEPS, call
from torch import Tensor

from meta_training import search_command, train_command
from meta_training.corpus import Corpus
from meta_training.evaluation.cells import Task
from meta_training.evaluation.judge import Scores
from meta_training.evaluation.relative import QueryLoss
from meta_training.pretrain import TextRows
from meta_training.recipe import load_recipe
from meta_training.train import OuterLoop

SEARCH: dict[str, Any] = {
    "recipe": "recipe.yaml",
    "sampler": "random",
    "trials": 3,
    "tasks": 2,
    "cells": ["label 5-way 1-shot", "house_reply 1-way 1-shot"],
    "judge_every": 2,
    "space": {
        "inner.first_step_size": {"low": 0.02, "high": 2.0, "log": True},
        "outer.algorithm": ["maml", "fomaml"],
    },
}
OWN_STEP, SMALL_STEP = 0.2, 1e-5
OWN_RATE, WILD_RATE = 2e-3, 1e30


def begin(finished: Path, place: Path) -> Path:
    """A folder for a search that has the finished run's stages before the outer loop."""
    folder = place / "out"
    shutil.copytree(finished / "pretrained", folder / "pretrained")
    for name in ("embedded.pt", "recipe.json"):
        shutil.copy(finished / name, folder / name)
    return folder


def search(data: Path, folder: Path, /, *more: object, **changes: Any) -> int:
    """Run ``innerloop search`` in ``folder``; ``changes`` are of the search, or its ``recipe``."""
    recipe = RECIPE | changes.pop("recipe_parts", {})
    (folder.parent / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    path = folder.parent / "search.yaml"
    path.write_text(yaml.safe_dump(SEARCH | changes), encoding="utf-8")
    return call(search_command, path, "--data", data, "--out", folder, *more)


def lines(folder: Path) -> list[dict[str, Any]]:
    rows = (folder / "trials.jsonl").read_text("utf-8").splitlines()
    return [json.loads(row) for row in rows]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, *batches: int) -> None:
    """Press Ctrl-C while an outer step draws its text, in those counted over all trials."""
    drawn = 0
    original = TextRows.batch

    def batch(self: TextRows, rows: int) -> Tensor:
        nonlocal drawn
        if drawn in batches:
            signal.raise_signal(signal.SIGINT)
        drawn += 1
        return original(self, rows)

    monkeypatch.setattr(TextRows, "batch", batch)


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One more in the list for every outer step that is taken."""
    taken: list[int] = []
    step = OuterLoop._step
    monkeypatch.setattr(OuterLoop, "_step", lambda self, *a: (taken.append(1), step(self, *a))[1])
    return taken


@pytest.fixture(scope="module")
def done(finished: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a search that nobody interrupted."""
    folder = begin(finished, tmp_path_factory.mktemp("search"))
    assert search(data, folder) == 0
    return folder


def test_every_trial_is_told_with_its_score(done: Path) -> None:
    rows = lines(done)
    assert [row["trial"] for row in rows] == [0, 1, 2, 3]
    assert [row["state"] for row in rows] == ["reference", "complete", "complete", "complete"]
    own = rows[0]
    assert own["settings"] == {"inner.first_step_size": OWN_STEP, "outer.algorithm": "maml"}
    assert own["score"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "means": 1.0, "tasks": 4}
    for row in rows:
        assert list(row["curve"]) == ["2", "4"]
        assert row["score"]["mean"] == row["curve"]["4"]
        assert row["score"]["low"] <= row["score"]["mean"] <= row["score"]["high"]
        assert list(row["cells"]) == SEARCH["cells"]
        assert 0.02 <= row["settings"]["inner.first_step_size"] <= 2
    assert len({row["score"]["mean"] for row in rows}) == 4


def test_the_score_is_that_of_the_losses_kept(done: Path) -> None:
    def losses(number: int) -> dict[tuple[str, int], float]:
        kept = (done / "trials" / f"{number:03d}" / "judged.jsonl").read_text("utf-8")
        rows = [json.loads(row) for row in kept.splitlines()]
        return {
            (row["cell"], row["task"]): row["figures"]["loss"] for row in rows if row["of"] == "4"
        }

    own, other = losses(0), losses(2)
    assert len(own) == 4
    mean = sum(other[key] / own[key] for key in own) / 4
    assert lines(done)[2]["score"]["mean"] == pytest.approx(mean, abs=1e-6)


def test_the_best_is_a_recipe_that_trains_the_same_model(
    done: Path, data: Path, tmp_path: Path
) -> None:
    best = min(lines(done), key=lambda row: row["score"]["mean"])
    recipe = load_recipe(done / "best.yaml")
    assert recipe.name == "mini-best"
    assert recipe.inner.first_step_size == best["settings"]["inner.first_step_size"]
    assert recipe.outer.algorithm == best["settings"]["outer.algorithm"]
    folder = Path(shutil.copytree(done, tmp_path / "out"))
    assert call(train_command, folder / "best.yaml", "--data", data, "--out", folder) == 0
    paths = [folder, folder / "trials" / f"{best['trial']:03d}"]
    trained = [
        torch.load(path / recipe.outer.algorithm / "checkpoint.pt", weights_only=True)["parts"]
        for path in paths
    ]
    first, second = (parts["learner"] for parts in trained)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_only_the_best_and_the_recipes_own_keep_checkpoints(done: Path) -> None:
    rows = lines(done)
    best = min(rows, key=lambda row: row["score"]["mean"])["trial"]
    kept = {path.parts[-3] for path in (done / "trials").glob("*/*/checkpoint.pt")}
    assert kept == {"000", f"{best:03d}"}


def test_the_page_needs_nothing_else(done: Path) -> None:
    page = (done / "search.html").read_text("utf-8")
    assert page.count("data:image/svg+xml;base64,") == 3
    assert not re.search(r"<script|<link|@import|url\(|src=\"http", page)
    assert page.count("alt=") == 3
    assert "outer.algorithm" in page
    assert "Score by setting" in page
    assert not list(done.glob("*.partial"))


def test_the_table_and_the_verdict_are_printed(
    done: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(done, tmp_path / "out"))
    assert search(data, folder) == 0
    printed = capsys.readouterr().out
    first, *_ = [line for line in printed.splitlines() if line.startswith("| ")][1:]
    best = min(lines(folder), key=lambda row: row["score"]["mean"])
    assert first.startswith(f"| {best['trial']} | {best['score']['mean']:.3f} (")
    assert re.search(r"Trial \d is best: S|No trial is better", printed)
    assert re.search(r"It (is ahead of|cannot be told from) .*, the next", printed)
    assert "3 of 3 trials: 0 stopped early, 0 failed." in printed


def test_a_finished_search_trains_nothing_again_and_takes_more_trials(
    done: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(done, tmp_path / "out"))
    taken = count_steps(monkeypatch)
    assert search(data, folder) == 0
    assert taken == []
    assert lines(folder) == lines(done)
    assert search(data, folder, "--trials", 4) == 0
    assert len(taken) == STEPS["outer"]
    assert lines(folder)[:4] == lines(done)
    assert lines(folder)[4]["state"] == "complete"


def test_interrupted_and_resumed_is_the_same_search(
    finished: Path, done: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In trial 0, in the last step of trial 1, and in the first of trial 2."""
    folder = begin(finished, tmp_path)
    steps = STEPS["outer"]
    taken = count_steps(monkeypatch)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1, 2 * steps - 1, 2 * steps)
        codes = [search(data, folder) for _ in range(4)]
    assert codes == [130, 130, 130, 0]
    assert len(taken) == 4 * steps, "no step is taken twice"
    assert (folder / "trials.jsonl").read_text("utf-8") == (done / "trials.jsonl").read_text(
        "utf-8"
    )
    assert (folder / "best.yaml").read_text("utf-8") == (done / "best.yaml").read_text("utf-8")


def test_ctrl_c_while_a_trial_is_judged_is_not_lost(
    finished: Path, done: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begin(finished, tmp_path)
    judged = 0
    scores = QueryLoss.scores

    def interrupted(self: QueryLoss, tasks: Sequence[Task]) -> dict[str, Scores]:
        nonlocal judged
        judged += 1
        if judged == 4:  # the second cell after the last step of trial 0
            signal.raise_signal(signal.SIGINT)
        return scores(self, tasks)

    with monkeypatch.context() as patch:
        patch.setattr(QueryLoss, "scores", interrupted)
        assert search(data, folder) == 130
    assert not (folder / "trials" / "001").exists()
    assert search(data, folder) == 0
    assert lines(folder) == lines(done)


def test_trials_that_are_behind_are_stopped_and_diverged_ones_fail(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = begin(finished, tmp_path)
    space = {
        "inner.first_step_size": [OWN_STEP, SMALL_STEP],
        "outer.adapter_learning_rate": [OWN_RATE, WILD_RATE],
    }
    rules = {"stop": "median", "startup": 1, "trials": 3, "seed": 1}
    assert search(data, folder, space=space, **rules) == 0
    said = capsys.readouterr()
    found = {}
    for row in lines(folder)[1:]:
        step, rate = row["settings"].values()
        behind = "stopped" if step == SMALL_STEP else "complete"
        assert row["state"] == ("failed" if rate == WILD_RATE else behind)
        found[row["state"]] = row
    assert set(found) == {"complete", "stopped", "failed"}, "the seed draws all of them"
    stopped, failed = found["stopped"], found["failed"]
    assert stopped["outer_steps"] == 2
    assert stopped["score"]["mean"] > 1
    assert failed["why"] == "diverged by outer step 2"
    assert failed["score"]["mean"] is None
    assert "diverged by outer step 2" in said.err
    assert "diverged by outer step 2" in said.out
    assert "stopped early" in said.out
    page = (folder / "search.html").read_text("utf-8")
    assert "diverged by outer step 2" in page
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page).lower()
    assert load_recipe(folder / "best.yaml").inner.first_step_size == OWN_STEP


def test_settings_that_cannot_be_trained_fail_by_name(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    folder = begin(finished, tmp_path)
    space = {"inner.targets": [["q_proj"], ["q_prod"]], "outer.gradient": ["unrolled", "adjoint"],
             "outer.algorithm": ["maml", "fomaml"]}  # fmt: skip
    assert search(data, folder, space=space, trials=5, judge_every=None) == 0
    reasons = {row["why"] for row in lines(folder) if row["state"] == "failed"}
    assert any("q_prod" in why for why in reasons)
    for row in lines(folder)[1:]:
        settings = row["settings"]
        wrong = settings["inner.targets"] == ["q_prod"]
        wrong |= settings["outer.gradient"] == "adjoint" and settings["outer.algorithm"] == "fomaml"
        assert (row["state"] == "failed") == wrong


def test_a_recipe_that_diverges_is_no_reference(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {"outer": RECIPE["outer"] | {"adapter_learning_rate": WILD_RATE}}
    assert search(data, begin(finished, tmp_path), recipe_parts=parts) == 2
    assert "settings of mini itself diverged by outer step 2" in capsys.readouterr().err


def test_a_changed_search_or_recipe_is_refused_by_name(
    done: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(done, tmp_path / "out"))
    before = (folder / "trials.jsonl").read_bytes()
    assert search(data, folder, tasks=3) == 2
    assert f"{folder} was made with tasks 2, the search has 3" in capsys.readouterr().err
    parts = {"outer": RECIPE["outer"] | {"clip": 2.0}}
    assert search(data, folder, recipe_parts=parts) == 2
    assert "was made with outer.clip 1.0, the recipe has 2.0" in capsys.readouterr().err
    assert search(data, folder, recipe_parts={"seed": 9}) == 2
    assert "was made with seed 3, the recipe has 9" in capsys.readouterr().err
    assert (folder / "trials.jsonl").read_bytes() == before


def test_wrong_input_is_told_before_any_work(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert search(data, folder, space={"inner.rnak": [1, 2]}) == 2
    assert "did you mean inner.rank?" in capsys.readouterr().err
    assert search(tmp_path / "nowhere", folder) == 2
    assert "clinc150.jsonl is missing" in capsys.readouterr().err
    assert not (folder / "pretrained").exists()
    with pytest.raises(SystemExit) as caught:
        search(data, folder, "--trials", "none")
    assert caught.value.code == 2


def test_tasks_too_large_for_the_validation_data_are_told(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(data, begin(finished, tmp_path), cells=["label 10-way 1-shot"]) == 2
    assert "no source has 10 intents" in capsys.readouterr().err


def test_trials_are_judged_on_validation_tasks_alone(
    finished: Path, data: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Task] = []
    scores = QueryLoss.scores

    def noted(self: QueryLoss, tasks: Sequence[Task]) -> dict[str, Scores]:
        seen.extend(tasks)
        return scores(self, tasks)

    monkeypatch.setattr(QueryLoss, "scores", noted)
    assert search(data, begin(finished, tmp_path), trials=1) == 0
    questions = {text for intent in corpus.validation_intents for text in intent.questions}
    asked = {
        turn.question for task in seen for turn in (*task.episode.support, *task.episode.query)
    }
    assert asked
    assert asked <= questions
    assert all(math.isfinite(row["score"]["mean"]) for row in lines(tmp_path / "out"))
