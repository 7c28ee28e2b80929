"""Which cells somebody asks for, by words or by name, and with which shares of wrong examples.

Knows cells and what they can be drawn from; knows nothing about methods or models.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import replace

from meta_training.evaluation.cells import Cell, TaskDrawer, drawable_cells
from meta_training.tasks.sources import DataError


def chosen_cells(
    drawer: TaskDrawer, words: Sequence[str], queries: int | None, wrong: Sequence[int]
) -> list[Cell]:
    """The cells that ``words`` name, for each share of wrong examples.

    Each of the words may be a cell's shape, or all of them together may be one, such as
    ``label 20-way 10-shot``; with ``full-way`` it has all classes of the largest source. Otherwise
    they are those of the usual cells that have all words in their shape. Shares that would change
    no example of a cell are left out of it, which is told on standard error.

    Raises:
        ValueError: there is no such cell, too little for one, or none to have wrong examples.
    """
    shapes = _named(drawer, words) or _matching(drawer, words)
    asked = [
        replace(cell, wrong_percent=percent, asked=queries)
        for cell in shapes
        for percent in sorted(set(wrong))
    ]
    chosen = [cell for cell in asked if not _why_never_wrong(drawer, cell)]
    if not chosen:
        raise ValueError(
            f"--wrong: no example of {_names(shapes)} would be taught wrongly: "
            f"{_why_never_wrong(drawer, asked[0])}"
        )
    for cell in asked:
        if why := _why_never_wrong(drawer, cell):
            print(f"left out: {cell.name}: {why}", file=sys.stderr)
    return chosen


def _matching(drawer: TaskDrawer, words: Sequence[str]) -> list[Cell]:
    cells = drawable_cells(drawer)
    shapes = [cell for cell in cells if all(word in cell.shape for word in words)]
    if not shapes:
        raise ValueError(
            f"no cell has all of {list(words)}; there are {_names(cells) or 'none'}. Another size "
            'is named in full: "label 20-way 10-shot" or "label full-way 5-shot"'
        )
    return shapes


def _named(drawer: TaskDrawer, words: Sequence[str]) -> list[Cell]:
    """The cells whose shapes are the words, or the one whose shape they are together."""
    for shapes in (words, [" ".join(words)]):
        try:
            cells = [_cell(drawer, shape) for shape in shapes]
        except ValueError:
            continue
        if all(cell.family in drawer.families for cell in cells):
            return [_drawable(drawer, cell) for cell in dict.fromkeys(cells)]
    return []


def _cell(drawer: TaskDrawer, shape: str) -> Cell:
    full = re.fullmatch(r"(.+) full-way ([1-9]\d*)-shot", shape)
    if full is None:
        return Cell.of(shape)
    # One way where there is nothing, so that it is told what is missing.
    return Cell(full[1], max(1, drawer.most_ways(full[1], int(full[2]))), int(full[2]))


def _drawable(drawer: TaskDrawer, cell: Cell) -> Cell:
    most = drawer.most_ways(cell.family, cell.shots)
    if cell.ways > most:
        raise ValueError(
            f"{cell.shape}: too little is held out: with {cell.shots} examples and a query each, "
            f"{most} ways at most"
        )
    if drawer.picks(cell.family) and cell.ways < 2:
        raise ValueError(f"{cell.shape}: of one class everybody is right: name two ways or more")
    try:
        drawer.draw(cell, 0)
    except DataError as error:
        raise ValueError(f"{cell.shape}: too little is held out: {error}") from error
    return cell


def _why_never_wrong(drawer: TaskDrawer, cell: Cell) -> str:
    """Why no example of a cell is taught wrongly though a share should be; empty where some are."""
    if not cell.wrong_percent:
        return ""
    examples, pairs = cell.ways * cell.shots, drawer.is_pairs(cell.family)
    if (examples if pairs else cell.ways) < 2:
        return f"one {'pair' if pairs else 'class'} has no other's answer"
    if not round(examples * cell.wrong_percent / 100):
        return f"{cell.wrong_percent}% of {examples} examples is none"
    return ""


def _names(cells: Sequence[Cell]) -> str:
    return ", ".join(cell.shape for cell in cells)
