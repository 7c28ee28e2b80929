"""Own classes made of nothing but numbers, and a drawer of tasks about them."""

from __future__ import annotations

from collections.abc import Sequence

from meta_training.evaluation.cells import Cell, TaskDrawer
from meta_training.tasks.episodes import unrelated_questions
from meta_training.tasks.families import Families
from meta_training.tasks.sources import Intent, PairTask

WORDS = [f"word{n}" for n in range(80)]


def classes(count: int, family: str = "", source: str = "own", questions: int = 12) -> list[Intent]:
    return [
        Intent(
            source,
            "d",
            f"class {n}",
            tuple(f"{source} {n} {i}?" for i in range(questions)),
            f"answer {n}" if family == "told" else None,
            family,
        )
        for n in range(count)
    ]


def drawer_of(intents: Sequence[Intent], pairs: Sequence[PairTask] = ()) -> TaskDrawer:
    families = Families(intents, [], [], WORDS, [], pairs)
    return TaskDrawer(families, unrelated_questions(intents, [], pairs), seed=1)


def shapes(cells: Sequence[Cell]) -> list[str]:
    return [cell.shape for cell in cells]
