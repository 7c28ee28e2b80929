"""The cells of a report: which episodes are drawn for each, the same for every method.

Knows families and held-out material; knows nothing about methods or models.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace

from meta_training.corpus import Corpus
from meta_training.tasks.episodes import Episode, Shape, mistaught, unrelated_questions
from meta_training.tasks.families import Families
from meta_training.tasks.sources import DataError

UNRELATED_PER_EPISODE = 6
WIDEST = 5  # ways of a family that has no usual cells
HOUSE_REPLY_TOKENS = (8, 30)


@dataclass(frozen=True)
class Cell:
    """One row of the report: a family in one shape.

    ``wrong_percent`` of the support have another class's answer. ``asked`` is how many queries a
    class has, where it is not the usual number.
    """

    family: str
    ways: int
    shots: int
    wrong_percent: int = 0
    asked: int | None = None

    @classmethod
    def of(cls, shape: str) -> Cell:
        """The cell of a shape such as ``label 5-way 3-shot``.

        Raises:
            ValueError: it is none.
        """
        found = re.fullmatch(r"(.+) ([1-9]\d*)-way ([1-9]\d*)-shot", shape)
        if found is None:
            raise ValueError(f"no cell is called {shape!r}: write it as label 5-way 3-shot")
        return cls(found[1], int(found[2]), int(found[3]))

    @classmethod
    def called(cls, name: str) -> Cell:
        """The cell whose ``name`` that is.

        Raises:
            ValueError: it is none's.
        """
        found = re.fullmatch(r"(.+?-shot)(?:, (\d+) queries)?(?:, (\d+)% wrong)?", name)
        asked = None if found is None or found[2] is None else int(found[2])
        wrong = 0 if found is None or found[3] is None else int(found[3])
        return replace(
            cls.of(name if found is None else found[1]), asked=asked, wrong_percent=wrong
        )

    @property
    def shape(self) -> str:
        """Such as ``label 5-way 3-shot``."""
        return f"{self.family} {self.ways}-way {self.shots}-shot"

    @property
    def name(self) -> str:
        """The shape and what is unusual about it, such as ``label 5-way 3-shot, 20% wrong``."""
        queries = "" if self.asked is None else f", {self.asked} queries"
        wrong = f", {self.wrong_percent}% wrong" if self.wrong_percent else ""
        return self.shape + queries + wrong

    @property
    def queries(self) -> int:
        """Queries a class: about 20 a label episode, 3 to 5 a taught reply."""
        if self.asked is not None:
            return self.asked
        return {5: 4, 10: 2, 20: 1}.get(self.ways, 1) if self.family == "label" else 3


CELLS = tuple(
    Cell(family, ways, shots)
    for shots in (5, 3, 1)
    for family, sizes in (("label", (5, 10, 20)), ("house_reply", (1, 3)), ("persona", (3,)))
    for ways in sizes
)


COMPARED = (Cell("label", 5, 5), Cell("house_reply", 1, 5), Cell("house_reply", 3, 5))
"""What settings and models are compared by where nobody says."""


@dataclass(frozen=True)
class Task:
    """An episode and the unrelated questions that go with it."""

    episode: Episode
    unrelated: tuple[str, ...]


class TaskDrawer:
    """Draws the i-th task of a cell: the same one every time, for every method."""

    def __init__(self, families: Families, unrelated: list[tuple[str, str]], seed: int) -> None:
        """Draw from ``families`` over material held out of every training stage.

        ``unrelated``: kind and text of each question that goes with tasks which do not teach it.
        """
        self._families = families
        self._unrelated = unrelated
        self._seed = seed

    def can_draw(self, cell: Cell) -> bool:
        """Whether there is enough for tasks of ``cell``."""
        if cell.family not in self.families:
            return False
        try:
            self.draw(cell, 0)
        except DataError:
            return False
        return True

    @property
    def families(self) -> list[str]:
        """Families that there is material for."""
        return self._families.names

    @property
    def drawn_from(self) -> dict[str, int]:
        """Family -> the classes, questions or tasks that its episodes are drawn from."""
        return {family: self._families.size(family) for family in self.families}

    def picks(self, family: str) -> bool:
        """Whether answers of the family are picked from choices."""
        return self._families.picks(family)

    def most_ways(self, family: str, shots: int) -> int:
        """Classes of the largest source that have a query beside ``shots`` examples."""
        return self._families.most_ways(family, shots)

    def is_pairs(self, family: str) -> bool:
        """Whether a task of the family is pairs of a prompt and an answer."""
        return self._families.is_pairs(family)

    def draw(self, cell: Cell, index: int) -> Task:
        """Task number ``index`` of ``cell``.

        It has no unrelated question where all that is held out is taught, as with both classes of
        two, and fewer than usual where little else is.

        Raises:
            DataError: too little is held out for such a task.
        """
        rng = random.Random(f"{self._seed}/{cell.shape}/{index}")
        shape = Shape(cell.ways, cell.shots, cell.queries)
        episode = self._families.draw(cell.family, shape, HOUSE_REPLY_TOKENS, rng)
        eligible = {text for kind, text in self._unrelated if kind not in episode.taught}
        others: list[str] = []
        while len(others) < min(UNRELATED_PER_EPISODE, len(eligible)):
            kind, question = rng.choice(self._unrelated)
            if kind not in episode.taught and question not in others:
                others.append(question)
        return Task(mistaught(episode, cell.wrong_percent / 100, rng), tuple(others))


def drawable_cells(drawer: TaskDrawer) -> list[Cell]:
    """The cells that there is material for: the usual ones, and those of further families."""
    usual = [cell for cell in CELLS if drawer.can_draw(cell)]
    known = {cell.family for cell in usual}
    further = [family for family in drawer.families if family not in known]
    widest = [_widest(drawer, family, shots) for shots in (5, 3, 1) for family in further]
    return usual + [cell for cell in widest if cell is not None]


def _widest(drawer: TaskDrawer, family: str, shots: int) -> Cell | None:
    """The cell of most classes up to ``WIDEST`` that can be drawn; pairs have one.

    Of free answers rather one less, so that something is left whose answers should not change. Of
    choices two at least: where there is one only, everybody is right.
    """
    sizes = (1,) if drawer.is_pairs(family) else range(WIDEST, 1 if drawer.picks(family) else 0, -1)
    cells = [cell for ways in sizes if drawer.can_draw(cell := Cell(family, ways, shots))]
    if not drawer.picks(family):
        cells.sort(key=lambda cell: not drawer.draw(cell, 0).unrelated)
    return cells[0] if cells else None


def held_out_questions(corpus: Corpus) -> list[tuple[str, str]]:
    """Unrelated questions never trained on: held-out intents, personas, first dialogue turns."""
    pairs = unrelated_questions(
        corpus.held_out_intents, corpus.held_out_personas, corpus.held_out_pairs
    )
    first = [
        ("dialogue", dialogue.turns[0][1])
        for dialogue in corpus.test_dialogues
        if dialogue.turns[0][0] == "user" and len(dialogue.turns[0][1].split()) <= 22
    ]
    return pairs + first
