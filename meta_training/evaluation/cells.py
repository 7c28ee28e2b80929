"""The cells of a report: which episodes are drawn for each, the same for every method.

Knows families and held-out material; knows nothing about methods or models.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from meta_training.corpus import Corpus
from meta_training.tasks.families import Episode, Families, Shape, unrelated_questions
from meta_training.tasks.sources import DataError

UNRELATED_PER_EPISODE = 6
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


@dataclass(frozen=True)
class Task:
    """An episode and the unrelated questions that go with it."""

    episode: Episode
    unrelated: tuple[str, ...]


class TaskDrawer:
    """Draws the i-th task of a cell: the same one every time, for every method."""

    def __init__(self, families: Families, unrelated: list[tuple[str, str]], seed: int) -> None:
        """Draw from ``families`` over material held out of every training stage."""
        self._families = families
        self._unrelated = unrelated
        self._seed = seed

    def draw(self, cell: Cell, index: int) -> Task:
        """Task number ``index`` of ``cell``.

        Raises:
            DataError: too little is held out for such a task.
        """
        rng = random.Random(f"{self._seed}/{cell.shape}/{index}")
        shape = Shape(cell.ways, cell.shots, cell.queries)
        if cell.family == "label":
            episode = self._families.label(shape, rng)
        elif cell.family == "persona":
            episode = self._families.persona(shape, rng)
        else:
            episode = self._families.house_reply(shape, HOUSE_REPLY_TOKENS, rng)
        eligible = {text for kind, text in self._unrelated if kind not in episode.taught}
        if len(eligible) < UNRELATED_PER_EPISODE:
            raise DataError(f"fewer than {UNRELATED_PER_EPISODE} held-out questions are unrelated")
        others: list[str] = []
        while len(others) < UNRELATED_PER_EPISODE:
            kind, question = rng.choice(self._unrelated)
            if kind not in episode.taught and question not in others:
                others.append(question)
        return Task(_mistaught(episode, cell.wrong_percent, rng), tuple(others))


def _mistaught(episode: Episode, percent: int, rng: random.Random) -> Episode:
    """The episode with so many of its examples, rounded, taught another class's answer."""
    support = list(episode.support)
    answers = {turn.answer for turn in support}
    for place in rng.sample(range(len(support)), round(len(support) * percent / 100)):
        others = sorted(answers - {support[place].answer})
        support[place] = replace(support[place], answer=rng.choice(others))
    return replace(episode, support=tuple(support))


def held_out_questions(corpus: Corpus) -> list[tuple[str, str]]:
    """Unrelated questions never trained on: held-out intents, personas, first dialogue turns."""
    pairs = unrelated_questions(corpus.held_out_intents, corpus.held_out_personas)
    first = [
        ("dialogue", dialogue.turns[0][1])
        for dialogue in corpus.test_dialogues
        if dialogue.turns[0][0] == "user" and len(dialogue.turns[0][1].split()) <= 22
    ]
    return pairs + first
