"""Cells are asked for by words or name, and what a share of wrong examples leaves out is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mini_run import evaluate
from own_classes import classes, drawer_of, shapes

from meta_training.evaluation.cells import Cell
from meta_training.evaluation.choosing import chosen_cells
from meta_training.tasks.sources import Pair, PairTask


def pair_task(count: int = 12) -> PairTask:
    pairs = tuple(Pair(f"prompt {n}", f"answer {n}") for n in range(count))
    return PairTask("shout", "own", "t", pairs)


SOURCES = [*classes(30, source="large"), *classes(7, source="small", questions=40)]
DRAWER = drawer_of([*SOURCES, *classes(3, "told")], [pair_task()])


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["label full-way 5-shot"], ["label 30-way 5-shot"]),
        (["label", "full-way", "5-shot"], ["label 30-way 5-shot"]),
        (["label full-way 20-shot"], ["label 7-way 20-shot"]),  # the large source has too few texts
        (["label 20-way 10-shot"], ["label 20-way 10-shot"]),
        (["label", "5-way", "5-shot"], ["label 5-way 5-shot"]),
        (["label 2-way 1-shot", "told 3-way 9-shot"], ["label 2-way 1-shot", "told 3-way 9-shot"]),
        (["told full-way 1-shot"], ["told 3-way 1-shot"]),
        (["shout full-way 9-shot"], ["shout 1-way 9-shot"]),
        (["label", "5-way"], [f"label 5-way {shots}-shot" for shots in (5, 3, 1)]),
        (["way", "5-shot", "l 2"], ["label 20-way 5-shot"]),
    ],
)
def test_a_cell_is_found_by_words_or_drawn_by_its_name(words: list[str], wanted: list[str]) -> None:
    cells = chosen_cells(DRAWER, words, None, [0])
    assert shapes(cells) == wanted
    for cell in cells:
        assert len({turn.kind for turn in DRAWER.draw(cell, 1).episode.support}) == (
            cell.shots if cell.family == "shout" else cell.ways
        )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["label 31-way 5-shot"],
            "label 31-way 5-shot: too little is held out: .* 30 ways at most",
        ),
        (["label full-way 99-shot"], "99-shot: too little is held out"),
        (["shout 2-way 1-shot"], "1 ways at most"),
        (["label 1-way 5-shot"], "of one class everybody is right"),
        (["poems 5-way 5-shot"], "no cell has all of .* named in full"),
        (["label", "full-way"], "no cell has all of .* named in full"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        chosen_cells(DRAWER, words, None, [0])


def test_more_label_words_than_there_are_is_said() -> None:
    drawer = drawer_of(classes(60))
    with pytest.raises(ValueError, match=r"label 60-way 5-shot: .*120 label words are needed"):
        chosen_cells(drawer, ["label full-way 5-shot"], None, [0])


def test_a_pair_is_wrong_with_another_pairs_answer() -> None:
    (cell,) = chosen_cells(DRAWER, ["shout 1-way 5-shot"], 2, [40])
    assert cell == Cell("shout", 1, 5, 40, 2)
    right = DRAWER.draw(Cell("shout", 1, 5, 0, 2), 0).episode
    wrong = DRAWER.draw(cell, 0).episode
    swapped = [
        (a, b) for a, b in zip(right.support, wrong.support, strict=True) if a.answer != b.answer
    ]
    assert len(swapped) == 2
    assert all(b.answer in {turn.answer for turn in right.support} for _, b in swapped)
    assert wrong.query == right.query


def test_what_is_left_out_of_a_share_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    drawer = drawer_of(classes(1, "told"), [pair_task()])
    cells = chosen_cells(drawer, [], None, [0, 40])
    assert {cell.name for cell in cells if cell.wrong_percent} == {
        "shout 1-way 5-shot, 40% wrong",
        "shout 1-way 3-shot, 40% wrong",
    }
    said = capsys.readouterr().err.splitlines()
    assert "left out: told 1-way 5-shot, 40% wrong: one class has no other's answer" in said
    assert "left out: shout 1-way 1-shot, 40% wrong: one pair has no other's answer" in said
    assert len(said) == 4
    chosen_cells(DRAWER, ["label 2-way 1-shot"], None, [0, 20])
    assert "1-shot, 20% wrong: 20% of 2 examples is none" in capsys.readouterr().err


def test_a_share_that_changes_nothing_says_why() -> None:
    with pytest.raises(ValueError, match=r"--wrong: no example of shout 1-way 1-shot .*one pair"):
        chosen_cells(DRAWER, ["shout 1-way 1-shot"], None, [40])


def test_all_held_out_classes_are_judged_at_once(artifact: Path, data: Path) -> None:
    cells = ("--cells", "label full-way 2-shot", "--methods", "tfidf", "--episodes", 2)
    assert evaluate(artifact, data, *cells) == 0
    report = json.loads((artifact / "report.json").read_text("utf-8"))
    assert list(report["cells"]) == ["label 6-way 2-shot"]
