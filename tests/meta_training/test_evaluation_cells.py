"""Cells of own families: as many ways as there are classes, and a choice wherever one picks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from mini_run import evaluate
from own_classes import classes, drawer_of, shapes

from meta_training.evaluation.cells import Cell, drawable_cells
from meta_training.tasks.sources import Pair, PairTask


@pytest.mark.parametrize(("count", "ways"), [(2, 2), (3, 3), (4, 4), (5, 5), (9, 5)])
def test_choices_are_among_all_classes_up_to_five(count: int, ways: int) -> None:
    drawer = drawer_of(classes(count, "sst2"))
    cells = drawable_cells(drawer)
    assert shapes(cells) == [f"sst2 {ways}-way {shots}-shot" for shots in (5, 3, 1)]
    task = drawer.draw(cells[0], 0)
    assert len(task.episode.choices) == ways
    assert bool(task.unrelated) == (count > ways)


def test_nobody_is_judged_by_choices_among_one() -> None:
    assert drawable_cells(drawer_of(classes(1, "sst2"))) == []
    assert drawable_cells(drawer_of(classes(1))) == []


@pytest.mark.parametrize(("count", "ways"), [(1, 1), (2, 1), (4, 3), (5, 4), (6, 5)])
def test_of_free_answers_one_is_left_to_ask_about(count: int, ways: int) -> None:
    drawer = drawer_of(classes(count, "told"))
    cells = drawable_cells(drawer)
    assert shapes(cells) == [f"told {ways}-way {shots}-shot" for shots in (5, 3, 1)]
    assert bool(drawer.draw(cells[0], 0).unrelated) == (count > 1)


def test_one_task_of_pairs_is_judged_as_it_is() -> None:
    task = PairTask("shout", "own", "t", tuple(Pair(f"p{n}", f"C{n}") for n in range(9)))
    drawer = drawer_of([], [task])
    assert shapes(drawable_cells(drawer)) == [f"shout 1-way {shots}-shot" for shots in (5, 3, 1)]
    assert drawer.draw(Cell("shout", 1, 5), 0).unrelated == ()


def write_tasks(folder: Path, name: str, labels: Sequence[str]) -> Path:
    """A file in the format of GLUE's SST-2 and the YAML that names it."""
    texts = [f"a {label} {noun} of {n}" for n, noun in enumerate("abcdefgh") for label in labels]
    rows = [f"{text}\t{labels[n % len(labels)]}" for n, text in enumerate(texts)]
    (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *rows, ""]), encoding="utf-8")
    tasks = folder / f"{name}.yaml"
    part = {"path": f"{name}.tsv", "form": "labels", "family": name}
    tasks.write_text(yaml.safe_dump([part | {"columns": {"text": "sentence"}}]), encoding="utf-8")
    return tasks


def test_a_file_of_two_classes_is_a_choice_of_two_and_says_what_it_cannot_tell(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = write_tasks(tmp_path, "sst2", ("good", "bad"))
    arguments = ("--tasks", tasks, "--methods", "ours", "tfidf", "--episodes", 2)
    assert evaluate(artifact, tmp_path, *arguments, "--cells", "3-shot") == 0
    printed = capsys.readouterr().out
    assert "### sst2 2-way 3-shot" in printed
    assert "unrelated answers changed" not in printed
    assert "Tasks of this cell teach all that there is to ask" in printed
    page = (artifact.parent / "report-sst2.html").read_text("utf-8")
    assert "Tasks of this cell teach all that there is to ask" in page
