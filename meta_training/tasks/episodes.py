"""What an episode is: turns to learn from and turns to answer, in text.

Knows texts only; nothing about where they come from or how they are drawn.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from meta_training.tasks.sources import Intent, PairTask, PersonaGroup


@dataclass(frozen=True)
class Turn:
    """A question, the answer it should get, and the class of question it belongs to.

    With ``rejected`` it teaches that the answer is better than that, with a ``rating`` that the
    answer was good (1) or bad (-1). ``pattern``: a regular expression for answers as a whole.
    """

    question: str
    answer: str
    kind: str
    rejected: str = ""
    rating: int = 0
    pattern: str = ""


@dataclass(frozen=True)
class Episode:
    """One task: learn from ``support``, then answer ``query``.

    ``choices``: the answers an answer may be picked from, empty where it is free text.
    ``taught``: kinds of question that were taught; others are unrelated.
    """

    family: str
    support: tuple[Turn, ...]
    query: tuple[Turn, ...]
    choices: tuple[str, ...]
    taught: frozenset[str]


@dataclass(frozen=True)
class Shape:
    """Size of an episode: N ways, k shots, queries a class."""

    ways: int
    shots: int
    queries: int


def as_intent(group: PersonaGroup) -> Intent:
    """The wordings of a persona question as an intent."""
    return Intent("persona", "persona", group.group, group.questions)


def kind_of(intent: Intent) -> str:
    """A name of the intent that is unique over all sources."""
    return f"{intent.source}/{intent.domain}/{intent.name}"


def kind_of_pair(task: PairTask, prompt: str) -> str:
    """A name of a task's prompt that is unique over all tasks."""
    return f"{task.family}/{task.source}/{task.name}/{prompt}"


def mistaught(episode: Episode, share: float, rng: random.Random) -> Episode:
    """The episode with ``share`` of its examples, rounded, taught another class's answer."""
    support = list(episode.support)
    answers = {turn.answer for turn in support}
    if len(answers) < 2:
        return episode
    for place in rng.sample(range(len(support)), round(len(support) * share)):
        others = sorted(answers - {support[place].answer})
        support[place] = replace(support[place], answer=rng.choice(others))
    return replace(episode, support=tuple(support))


def unrelated_questions(
    intents: Sequence[Intent], personas: Sequence[PersonaGroup], pairs: Sequence[PairTask] = ()
) -> list[tuple[str, str]]:
    """Every (kind, question) that can serve as an unrelated query."""
    every = [*intents, *map(as_intent, personas)]
    questions = [(kind_of(intent), question) for intent in every for question in intent.questions]
    return questions + [
        (kind_of_pair(task, pair.prompt), pair.prompt) for task in pairs for pair in task.pairs
    ]
