"""Task families: from intents, replies and personas to episodes of text.

Each family draws everything that could be known in advance anew: label words, reply sentences,
wordings, order. Knows texts only; nothing about tokens' ids, models or gradients.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from meta_training.tasks.sources import DataError, Intent, PersonaGroup

LARGEST_POOL = 900  # intents; a larger source is drawn as often as one of this size


@dataclass(frozen=True)
class Turn:
    """A question, the answer it should get, and the class of question it belongs to."""

    question: str
    answer: str
    kind: str


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


class Families:
    """Draws episodes of every family from one pool of material.

    Drawing raises ``DataError`` where the material is too little for the shape asked for.

    Args:
        intents: questions to teach about.
        replies: sentences to teach as house replies.
        personas: wordings with every persona's answers.
        words: words that label names are made of.
        reply_lengths: tokens of each reply, for the bounds on replies.
    """

    def __init__(
        self,
        intents: Sequence[Intent],
        replies: Sequence[str],
        personas: Sequence[PersonaGroup],
        words: Sequence[str],
        reply_lengths: Sequence[int],
    ) -> None:
        self._intents = list(intents)
        self._personas = [group for group in personas if len(group.questions) >= 2]
        self._words = list(words)
        self._by_length: dict[int, list[str]] = {}
        for reply, length in zip(replies, reply_lengths, strict=True):
            self._by_length.setdefault(length, []).append(reply)
        self._distinct = {length: len(set(same)) for length, same in self._by_length.items()}

    def label(self, shape: Shape, rng: random.Random) -> Episode:
        """N intents, each answered by a label drawn anew (5-way k-shot and the like)."""
        intents = self._sample_intents(shape.ways, shape.shots + 1, rng)
        labels = self._labels(len(intents), rng)
        return self._assemble("label", intents, labels, shape, rng, tuple(labels))

    def house_reply(self, shape: Shape, tokens: tuple[int, int], rng: random.Random) -> Episode:
        """N intents, each answered by one sentence of ``tokens`` (least, most) tokens."""
        intents = self._sample_intents(shape.ways, shape.shots + 1, rng)
        replies = self._replies(len(intents), tokens, rng)
        return self._assemble("house_reply", intents, replies, shape, rng, ())

    def persona(self, shape: Shape, rng: random.Random) -> Episode:
        """N questions as one persona answers them; queries are other wordings of these."""
        if not self._personas:
            raise DataError("no persona question has two wordings or more")
        groups = rng.sample(self._personas, min(shape.ways, len(self._personas)))
        name = rng.choice([persona for persona, _ in groups[0].answers])
        intents = [as_intent(group) for group in groups]
        answers = [dict(group.answers).get(name, group.answers[0][1]) for group in groups]
        return self._assemble("persona", intents, answers, shape, rng, ())

    def _assemble(
        self,
        family: str,
        intents: Sequence[Intent],
        answers: Sequence[str],
        shape: Shape,
        rng: random.Random,
        choices: tuple[str, ...],
    ) -> Episode:
        support, query = [], []
        for intent, answer in zip(intents, answers, strict=True):
            wanted = min(shape.shots + shape.queries, len(intent.questions))
            shots = min(shape.shots, wanted - 1)
            turns = [
                Turn(question, answer, kind_of(intent))
                for question in rng.sample(intent.questions, wanted)
            ]
            support += turns[:shots]
            query += turns[shots:]
        rng.shuffle(support)
        taught = frozenset(kind_of(intent) for intent in intents)
        return Episode(family, tuple(support), tuple(query), choices, taught)

    def _sample_intents(self, ways: int, questions: int, rng: random.Random) -> list[Intent]:
        # One source an episode: across sources the same intent may go by two names.
        pools: dict[str, list[Intent]] = {}
        for intent in self._intents:
            if len(intent.questions) >= questions:
                pools.setdefault(intent.source, []).append(intent)
        sources = [source for source, pool in pools.items() if len(pool) >= ways]
        if not sources:
            raise DataError(f"no source has {ways} intents with {questions} questions or more each")
        weights = [min(len(pools[source]), LARGEST_POOL) ** 0.5 for source in sources]
        return rng.sample(pools[rng.choices(sources, weights)[0]], ways)

    def _labels(self, count: int, rng: random.Random) -> list[str]:
        if len(self._words) < 2 * count:
            raise DataError(f"{2 * count} label words are needed, there are {len(self._words)}")
        words = rng.sample(self._words, 2 * count)
        double = rng.random() < 0.3
        return [f"{words[i]} {words[count + i]}" if double else words[i] for i in range(count)]

    def _replies(self, count: int, tokens: tuple[int, int], rng: random.Random) -> list[str]:
        least, most = tokens
        lengths = [length for length in self._by_length if least <= length <= most]
        if sum(self._distinct[length] for length in lengths) < count:
            raise DataError(f"fewer than {count} replies have {least} to {most} tokens")
        chosen: list[str] = []
        while len(chosen) < count:
            reply = rng.choice(self._by_length[rng.choice(lengths)])
            if reply not in chosen:
                chosen.append(reply)
        return chosen


def as_intent(group: PersonaGroup) -> Intent:
    """The wordings of a persona question as an intent."""
    return Intent("persona", "persona", group.group, group.questions)


def kind_of(intent: Intent) -> str:
    """A name of the intent that is unique over all sources."""
    return f"{intent.source}/{intent.domain}/{intent.name}"


def unrelated_questions(
    intents: Sequence[Intent], personas: Sequence[PersonaGroup]
) -> list[tuple[str, str]]:
    """Every (kind, question) that can serve as an unrelated query."""
    every = [*intents, *map(as_intent, personas)]
    return [(kind_of(intent), question) for intent in every for question in intent.questions]
