"""Results are kept line by line, survive being cut, and are summed up with their intervals."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from meta_training.corpus import Corpus
from meta_training.evaluation.cells import Cell, Task, TaskDrawer, held_out_questions
from meta_training.evaluation.intervals import interval
from meta_training.evaluation.judge import Scores
from meta_training.evaluation.methods import TfidfCentroid
from meta_training.evaluation.page import render
from meta_training.evaluation.report import differences, markdown, summarise
from meta_training.evaluation.run import ResultsError, evaluate, read_results
from meta_training.pipeline import label_words
from meta_training.tasks.families import Families

CELL = Cell("label", 5, 3)
OF = "artifact/1"
Row = dict[str, Any]


class Twice(TfidfCentroid):
    """TF-IDF, scored at two checkpoints; remembers the tasks it saw."""

    name = "twice"
    checkpoints: tuple[str, ...] = ("early", "late")

    def __init__(self, accuracy: float | None = None) -> None:
        self.seen: list[Task] = []
        self._instead = accuracy

    def scores(self, tasks: Sequence[Task]) -> dict[str, Scores]:
        self.seen += tasks
        (figures,) = super().scores(tasks).values()
        if self._instead is not None:
            figures = [{"choice": self._instead} for _ in figures]
        return dict.fromkeys(self.checkpoints, figures)


@pytest.fixture(scope="module")
def drawer(corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> TaskDrawer:
    families = Families(corpus.held_out_intents, [], [], label_words(tokenizer), [])
    return TaskDrawer(families, held_out_questions(corpus), seed=1)


def run(drawer: TaskDrawer, path: Path, episodes: int = 4, of: str = OF) -> Twice:
    method = Twice()
    evaluate([method], [CELL], drawer, episodes, path, of)
    return method


def test_one_line_for_every_task_and_checkpoint(drawer: TaskDrawer, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.jsonl"
    assert len(run(drawer, path).seen) == 4
    rows = read_results(path, OF)
    assert {(row["task"], row["checkpoint"]) for row in rows} == {
        (task, checkpoint) for task in range(4) for checkpoint in Twice.checkpoints
    }
    assert {(row["cell"], row["method"]) for row in rows} == {(CELL.name, "twice")}


def test_done_tasks_are_not_done_again(drawer: TaskDrawer, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    run(drawer, path, 2)
    assert run(drawer, path, 2).seen == []
    assert run(drawer, path, 5).seen == [drawer.draw(CELL, index) for index in (2, 3, 4)]
    assert len(read_results(path, OF)) == 10


@pytest.mark.parametrize("cut", [1, 2, 9, 60, 100_000], ids=lambda cut: f"{cut} bytes")
def test_a_cut_file_goes_on_and_ends_as_if_whole(
    drawer: TaskDrawer, tmp_path: Path, cut: int
) -> None:
    """A cut behind the last brace, before it, in the middle, a whole line away, all away."""
    path, whole = tmp_path / "results.jsonl", tmp_path / "whole.jsonl"
    run(drawer, whole)
    lines = whole.read_bytes()
    path.write_bytes(lines[:-cut] if cut < len(lines) else b"")
    before = len(read_results(path, OF))
    assert before < 8
    run(drawer, path)
    assert summarise(read_results(path, OF)) == summarise(read_results(whole, OF))
    assert path.read_bytes().endswith(b"\n")
    assert all(json.loads(line) for line in path.read_bytes().splitlines())


def test_a_task_with_half_its_checkpoints_runs_again(drawer: TaskDrawer, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    run(drawer, path)
    rows = path.read_text("utf-8").splitlines(keepends=True)
    kept = [row for row in rows if '"late"' not in row or '"task": 1' not in row]
    path.write_text("".join(kept), encoding="utf-8")
    assert run(drawer, path).seen == [drawer.draw(CELL, 1)]


def test_results_of_something_else_do_not_count(drawer: TaskDrawer, tmp_path: Path) -> None:
    """An artifact trained again, or other tasks: nobody may be shown the old figures as new."""
    path = tmp_path / "results.jsonl"
    run(drawer, path, 2)
    assert len(run(drawer, path, 2, of="another/1").seen) == 2
    assert len(read_results(path, OF)) == len(read_results(path, "another/1")) == 4


@pytest.mark.parametrize("line", ["{", "[1]", "no"])
def test_a_broken_line_inside_is_named(drawer: TaskDrawer, tmp_path: Path, line: str) -> None:
    path = tmp_path / "results.jsonl"
    run(drawer, path, 2)
    rows = path.read_text("utf-8").splitlines()
    path.write_text("\n".join([rows[0], line, *rows[1:], ""]), encoding="utf-8")
    with pytest.raises(ResultsError, match="take another file") as caught:
        run(drawer, path, 2)
    assert f"{path}:2" in str(caught.value)


def test_no_file_is_no_results(tmp_path: Path) -> None:
    assert read_results(tmp_path / "none.jsonl", OF) == []


def row(task: int, value: float | None, checkpoint: str = "late", figure: str = "exact") -> Row:
    return {
        "of": OF,
        "cell": CELL.name,
        "method": "m",
        "checkpoint": checkpoint,
        "task": task,
        "figures": {figure: value},
    }


def test_a_summary_has_means_and_intervals() -> None:
    summary = summarise([row(0, 0.25), row(1, 0.75), row(2, 0.5), row(0, 1.0, "early")])
    points = summary[CELL.name]["m"]
    mean, half = interval([0.25, 0.75, 0.5])
    late = {"mean": round(mean, 4), "ci95": round(half, 4)}
    assert points["late"] == {"tasks": 3, "exact": late}
    assert points["early"] == {"tasks": 1, "exact": {"mean": 1.0, "ci95": None}}


def test_a_task_that_ran_twice_counts_once() -> None:
    summary = summarise([row(0, 0.0), row(1, 0.0), row(0, 1.0)])
    assert summary[CELL.name]["m"]["late"]["tasks"] == 2
    assert summary[CELL.name]["m"]["late"]["exact"]["mean"] == 0.5


def test_a_diverged_method_has_no_mean_and_valid_json(drawer: TaskDrawer, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    evaluate([Twice(math.nan)], [CELL], drawer, 2, path, OF)
    assert "NaN" not in path.read_text("utf-8")
    summary = summarise(read_results(path, OF))
    assert summary[CELL.name]["twice"]["late"]["choice"]["mean"] is None
    json.dumps(summary, allow_nan=False)
    assert "| twice, late | – | 2 |" in markdown(summary)


def test_a_page_shows_what_diverged_as_nothing() -> None:
    figures = {"choice": None, "exact": 0.5, "changed": None, "confidence": None}
    rows = [
        row(0, 0.0, "5 steps") | {"method": method, "figures": figures}
        for method in ("innerloop", "LoRA")
    ]
    cells = summarise(rows)
    served = ("innerloop", "5 steps")
    told = {"cells": cells, "differences": differences(rows, served), "seed": 1}
    page = render(
        told | {"perplexity": {}, "perplexity_ratio": {}, "explained": {}, "recipe": {}},
        "mini",
        served,
    )
    assert "LoRA, 5 steps" in page
    assert "nan" not in page.lower().split("every cell")[1]


def test_markdown_has_a_table_a_cell() -> None:
    rows = [row(0, 0.5), row(1, 1.0), row(0, 2.0, figure="kl"), row(0, 0.25, "-")]
    assert markdown(summarise(rows)).splitlines() == [
        "### label 5-way 3-shot",
        "",
        "| method | exactly right % | KL, nats/token | tasks |",
        "|---|---|---|---|",
        "| m, late | 75.0 ± 317.6 | 2.000 | 2 |",
        "| m | 25.0 | – | 1 |",
    ]
    assert markdown({}) == ""


def test_differences_are_of_the_tasks_that_both_have() -> None:
    """By the bootstrap's own definition, drawn again here one resample at a time."""
    served = [row(task, value) | {"method": "ours"} for task, value in enumerate((1.0, 0.5, 1.0))]
    others = [row(1, 0.5), row(2, 0.0), row(0, 0.25), row(9, 0.0), row(0, None, "early")]
    found = differences(served + others, ("ours", "late"))[CELL.name]
    assert set(found) == {"m"}
    assert set(found["m"]) == {"late"}, "what diverged is no number to compare with"
    point = found["m"]["late"]["exact"]
    assert (point["mean"], point["tasks"]) == (pytest.approx((0.75 + 0 + 1) / 3, abs=1e-4), 3)
    rng = random.Random(1)
    means = sorted(statistics.fmean(rng.choices((0.75, 0.0, 1.0), k=3)) for _ in range(20_000))
    assert point["low"] == pytest.approx(means[500], abs=0.02)
    assert point["high"] == pytest.approx(means[-501], abs=0.02)


def test_a_difference_of_one_task_has_no_interval() -> None:
    rows = [row(0, 1.0) | {"method": "ours"}, row(0, 0.5)]
    found = differences(rows, ("ours", "late"))[CELL.name]["m"]["late"]["exact"]
    assert found == {"mean": 0.5, "low": None, "high": None, "tasks": 1}
