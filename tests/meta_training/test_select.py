"""``innerloop select``: who is best, by how much, resumed, and what it refuses to compare."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from mini_run import call, meta_train

from meta_training import select_command
from meta_training.evaluation.cells import Task
from meta_training.evaluation.judge import Scores
from meta_training.evaluation.relative import QueryLoss

CELLS = ("--cells", "1-shot", "house_reply", "1-way")
SHAPE = "house_reply 1-way 1-shot"


@pytest.fixture(scope="module")
def other(finished: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact from the same base by another algorithm."""
    folder = Path(shutil.copytree(finished, tmp_path_factory.mktemp("other") / "run"))
    assert meta_train(data, folder, "--algorithm", "reptile") == 0
    return folder / "reptile" / "artifact"


def select(data: Path, reference: Path, *more: object) -> int:
    arguments = ["--reference", reference, "--data", data, "--tasks", 4, *CELLS]
    return call(select_command, *more, *arguments)


def count_tasks(monkeypatch: pytest.MonkeyPatch, stop_at: int = -1) -> list[Task]:
    """The tasks that are judged; Ctrl-C in the call of that number."""
    seen: list[Task] = []
    calls: list[int] = []
    scores = QueryLoss.scores

    def noted(self: QueryLoss, tasks: Sequence[Task]) -> dict[str, Scores]:
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        calls.append(1)
        seen.extend(tasks)
        return scores(self, tasks)

    monkeypatch.setattr(QueryLoss, "scores", noted)
    return seen


def change_recipe(artifact: Path, **changes: Any) -> None:
    path = artifact / "report.json"
    report = json.loads(path.read_text("utf-8"))
    data = report["recipe"]["data"] | changes.pop("data", {})
    report["recipe"] |= changes | {"data": data}
    path.write_text(json.dumps(report), encoding="utf-8")


def test_artifacts_are_told_best_first(
    artifact: Path, other: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "deep" / "select.json"
    assert select(data, artifact, other, artifact, "--save", saved) == 0
    printed = capsys.readouterr().out
    told = json.loads(saved.read_text("utf-8"))
    means = [each["score"]["mean"] for each in told["artifacts"]]
    assert means == sorted(means)
    own = next(each for each in told["artifacts"] if each["artifact"] == str(artifact))
    assert own["score"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "means": 1.0, "tasks": 4}
    another = next(each for each in told["artifacts"] if each["artifact"] == str(other))
    assert another["score"]["mean"] != 1.0
    assert another["cells"][SHAPE] == another["score"], "it is the only cell"
    rows = [line for line in printed.splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[0][2:] for row in rows] == [e["artifact"] for e in told["artifacts"]]
    assert f"| {artifact} | 1.000 (1.000 to 1.000) |" in printed
    assert printed.splitlines()[-len(told["verdict"]) :] == told["verdict"]
    assert re.search(r"It (is ahead of|cannot be told from) .*, the next: \+", printed)
    assert (told["tasks"], told["seed"]) == ("validation", 2000)


def test_equal_models_cannot_be_told_apart(
    artifact: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = Path(shutil.copytree(artifact, tmp_path / "twin"))
    assert select(data, artifact, artifact, twin) == 0
    assert f"It cannot be told from {twin}, the next: +0.000" in capsys.readouterr().out


def test_what_was_judged_is_not_judged_again(
    artifact: Path, other: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = count_tasks(monkeypatch)
    assert select(data, artifact, other) == 0
    assert len(seen) == 8
    assert seen[:4] == seen[4:], "the same tasks for both"
    assert select(data, artifact, other, artifact) == 0
    assert len(seen) == 8
    assert select(data, artifact, other, "--seed", 5) == 0
    assert len(seen) == 16
    assert not set(map(repr, seen[8:])) & set(map(repr, seen[:8]))


def test_stopped_and_resumed_is_the_same(
    artifact: Path, other: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, again = tmp_path / "whole.json", tmp_path / "again.json"
    assert select(data, artifact, other, "--save", whole) == 0
    kept = ("--results", tmp_path / "kept.jsonl", "--save", again)
    with monkeypatch.context() as patch:
        count_tasks(patch, stop_at=1)
        assert select(data, artifact, other, *kept) == 130
    assert not again.exists()
    seen = count_tasks(monkeypatch)
    assert select(data, artifact, other, *kept) == 0
    assert len(seen) == 4, "the reference's were kept"
    assert again.read_text("utf-8") == whole.read_text("utf-8")


def test_held_out_tasks_are_asked_for(artifact: Path, data: Path, tmp_path: Path) -> None:
    saved = tmp_path / "select.json"
    assert select(data, artifact, artifact, "--held-out", "--save", saved) == 0
    assert json.loads(saved.read_text("utf-8"))["tasks"] == "held-out"


def test_an_artifact_that_may_know_the_tasks_is_refused(
    artifact: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = Path(shutil.copytree(artifact, tmp_path / "twin"))
    change_recipe(twin, data={"validation": ["snips"]})
    assert select(data, artifact, twin) == 2
    said = capsys.readouterr().err
    assert f"{twin}: its recipe's data.validation is ['snips']" in said
    change_recipe(twin, data={"validation": ["hint3"]}, seed=4)
    assert select(data, artifact, twin) == 0


def test_personas_of_another_split_are_refused(
    artifact: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = Path(shutil.copytree(artifact, tmp_path / "twin"))
    change_recipe(twin, seed=4)
    arguments = ("--reference", artifact, "--data", data, "--cells", "persona")
    assert call(select_command, twin, *arguments) == 2
    assert "leave persona cells out" in capsys.readouterr().err


def test_a_reference_without_a_recipe_or_validation_is_refused(
    artifact: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_recipe(artifact, data={"validation": []})
    assert select(data, artifact, artifact) == 2
    assert "names no data.validation" in capsys.readouterr().err
    (artifact / "report.json").write_text("{}", encoding="utf-8")
    assert select(data, artifact, artifact) == 2
    assert "report.json has no recipe" in capsys.readouterr().err


def test_wrong_arguments_are_refused(
    artifact: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--reference", artifact, "--data", data)
    assert call(select_command, artifact, *arguments, "--cells", "none") == 2
    assert "no cell has all of ['none']" in capsys.readouterr().err
    assert call(select_command, artifact, *arguments, "--tasks", 1) == 2
    assert "one task has no interval" in capsys.readouterr().err
    assert call(select_command, artifact / "none", *arguments) == 2
    assert "none" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        call(select_command, artifact)
