"""The mean over splits: of what all of them have, and of splits alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from mini_run import RECIPE, call, meta_train

from meta_training import evaluate_command
from meta_training.evaluation.intervals import over_runs
from meta_training.evaluation.splits import (
    SplitsError,
    check_splits,
    markdown_of_means,
    mean_over_splits,
)
from meta_training.recipe import Recipe

SPLIT = {"split": {"source": "clinc150"}, "held_out": {}, "validation": []}
METHODS = ("--methods", "tfidf", "prototypical", "--cells", "label", "5-way", "--episodes", 3)


def recipe(number: int, **parts: Any) -> Recipe:
    data = {"split": {"source": "clinc150", "number": number}}
    return Recipe.model_validate(RECIPE | {"data": data} | parts)


def summary(right: float | None, tasks: int = 4, method: str = "ours") -> dict[str, Any]:
    point = {"choice": {"mean": right, "ci95": 0.1}, "tasks": tasks}
    return {"label 5-way 1-shot": {method: {"5 steps": point}}}


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The artifacts of two splits."""
    folders = []
    for number in (0, 1):
        folder = tmp_path_factory.mktemp(f"split-{number}")
        parts = {"data": SPLIT, "outer": {"steps": 1, "families": {"label": 1}}}
        assert meta_train(data, folder, "--split", number, **parts) == 0
        folders.append(folder / "maml" / "artifact")
    return folders


def test_five_runs_by_hand() -> None:
    mean, deviation, half = over_runs([0.90, 0.92, 0.94, 0.96, 0.98])
    assert (mean, deviation) == (pytest.approx(0.94), pytest.approx(0.0316228, abs=1e-6))
    assert half == pytest.approx(2.776 * 0.0316228 / 5**0.5, abs=1e-6)


def test_one_run_has_no_interval() -> None:
    mean, *others = over_runs([0.5])
    assert mean == 0.5
    assert all(value != value for value in others)


def test_the_mean_is_told_with_deviation_and_interval() -> None:
    means = mean_over_splits([summary(0.8), summary(0.9)])
    told = markdown_of_means(means, 2)
    assert "| ours, 5 steps | 85.0 ± 7.1 (21.5 to 148.5) | 4 |" in told


@pytest.mark.parametrize(
    "other", [summary(0.9, tasks=5), summary(0.9, method="else"), summary(None), {}]
)
def test_only_what_all_splits_have_counts(other: dict[str, Any]) -> None:
    assert mean_over_splits([summary(0.8), other]) == {}
    assert mean_over_splits([other, summary(0.8)]) == {}


@pytest.mark.parametrize(
    ("recipes", "words"),
    [
        ([recipe(0), Recipe.model_validate(RECIPE)], "b: its recipe has no data.split"),
        ([recipe(1), recipe(1)], "b and a have split 1 both"),
        ([recipe(0), recipe(1, seed=4)], "b: seed of its recipe is not that of a"),
        ([recipe(0), recipe(1, data={"split": {"source": "snips", "number": 1}})], "b: data of"),
    ],
)
def test_what_are_no_splits_of_one_source_has_no_mean(recipes: list[Recipe], words: str) -> None:
    with pytest.raises(SplitsError, match=re.escape(words)):
        check_splits(list(zip("ab", recipes, strict=True)))


def test_names_of_recipes_may_differ() -> None:
    check_splits([("a", recipe(0)), ("b", recipe(1, name="other"))])


def test_one_command_gives_the_mean(
    runs: list[Path], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(evaluate_command, *runs, "--data", data, *METHODS, "--queries", 2) == 0
    printed = capsys.readouterr().out
    assert "Mean over 2 splits" in printed
    reports = [json.loads((run / "report.json").read_text("utf-8")) for run in runs]
    assert [report["recipe"]["data"]["split"]["number"] for report in reports] == [0, 1]
    cell = "label 5-way 1-shot, 2 queries"
    method = "TF-IDF nearest centroid"
    rights = [report["cells"][cell][method]["-"]["choice"]["mean"] for report in reports]
    mean = 100 * sum(rights) / 2
    means = printed[printed.index("Mean over") :]
    assert re.search(rf"### {cell}\n.*\| {method} \| {mean:.1f} ± [^|]* \| 3 \|", means, re.DOTALL)


def test_lines_of_an_artifact_judged_alone_count_too(
    runs: list[Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As those of controls, which need the base of each."""
    copies = []
    for number, run in enumerate(runs):
        copies.append(shutil.copytree(run, tmp_path / str(number) / "artifact"))
        frozen = ("--methods", "frozen", "--pretrained", run.parents[1] / "pretrained")
        alone = ("--cells", "label", "5-way", "1-shot", "--episodes", 3)
        assert call(evaluate_command, copies[-1], "--data", data, *frozen, *alone) == 0
    capsys.readouterr()
    assert call(evaluate_command, *copies, "--data", data, *METHODS) == 0
    means = capsys.readouterr().out.partition("Mean over")[2]
    assert "| nearest prototype, pre-trained base |" in means


@pytest.mark.parametrize(
    "option",
    ["--pretrained", "--multitask", "--prototypes", "--tasks", "--page", "--plot"],
)
def test_what_is_of_one_artifact_is_refused(
    runs: list[Path], data: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(evaluate_command, *runs, "--data", data, *METHODS, option, "x.svg") == 2
    assert f"{option} is of one artifact" in capsys.readouterr().err


def test_artifacts_of_other_recipes_are_refused_first(
    runs: list[Path], finished: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = finished / "maml" / "artifact"
    assert call(evaluate_command, runs[0], other, "--data", data, *METHODS) == 2
    assert f"{other}: its recipe has no data.split" in capsys.readouterr().err
    assert not (other.parent / "results.jsonl").exists()
