"""Task families: from intents, replies and personas to episodes of text.

Each family draws everything that could be known in advance anew: label words, reply sentences,
wordings, order. Knows texts only; nothing about tokens' ids, models or gradients.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from meta_training.tasks.difficulty import Difficulty
from meta_training.tasks.episodes import Episode, Shape, Turn, as_intent, kind_of, kind_of_pair
from meta_training.tasks.sources import DataError, Intent, PairTask, PersonaGroup

LARGEST_POOL = 900  # intents; a larger source is drawn as often as one of this size


class Families:
    """Draws episodes of every family from one pool of material.

    Drawing raises ``DataError`` where the material is too little for the shape asked for.

    Args:
        intents: questions to teach about.
        replies: sentences to teach as house replies.
        personas: wordings with every persona's answers.
        words: words that label names are made of.
        reply_lengths: tokens of each reply, for the bounds on replies.
        pairs: tasks of the families that are named in them.
        difficulty: draws intents that are hard more often.
    """

    def __init__(
        self,
        intents: Sequence[Intent],
        replies: Sequence[str],
        personas: Sequence[PersonaGroup],
        words: Sequence[str],
        reply_lengths: Sequence[int],
        pairs: Sequence[PairTask] = (),
        difficulty: Difficulty | None = None,
    ) -> None:
        self._personas = [group for group in personas if len(group.questions) >= 2]
        self._debatable = [g for g in self._personas if len({a for _, a in g.answers}) > 1]
        self._answered: dict[str, list[Intent]] = {}  # by family
        self._labelled: dict[str, list[Intent]] = {}
        for intent in intents:
            if intent.answer is not None:
                self._answered.setdefault(intent.family or "replies", []).append(intent)
            if intent.answer is None or not intent.family:
                self._labelled.setdefault(intent.family or "label", []).append(intent)
        self._difficulty = difficulty
        self._words = list(words)
        self._pairs: dict[str, list[PairTask]] = {}
        for task in pairs:
            self._pairs.setdefault(task.family, []).append(task)
        self._by_length: dict[int, list[str]] = {}
        for reply, length in zip(replies, reply_lengths, strict=True):
            self._by_length.setdefault(length, []).append(reply)
        self._distinct = {length: len(set(same)) for length, same in self._by_length.items()}

    @property
    def names(self) -> list[str]:
        """Families that there is material for."""
        free = {
            "house_reply": "label" in self._labelled and bool(self._by_length),
            "persona": bool(self._personas),
            **dict.fromkeys(("verdict", "rating"), bool(self._debatable)),
        }
        some = [name for name, material in free.items() if material]
        return [*self._labelled, *some, *self._answered, *self._pairs]

    def size(self, family: str) -> int:
        """Classes, questions or tasks that episodes of the family are drawn from."""
        free: dict[str, Sequence[object]] = {
            "house_reply": self._labelled.get("label", []),
            "persona": self._personas,
            **dict.fromkeys(("verdict", "rating"), self._debatable),
        }
        drawn = {**free, **self._labelled, **self._answered, **self._pairs}
        return len(drawn.get(family, ()))

    def picks(self, family: str) -> bool:
        """Whether answers of the family are picked from choices."""
        return family in self._labelled

    def is_pairs(self, family: str) -> bool:
        """Whether a task of the family is one of ``PairTask``."""
        return family in self._pairs

    def most_ways(self, family: str, shots: int) -> int:
        """The most ways of an episode: classes of a source, or own answers of a domain.

        Of those with a query beside ``shots`` examples; personas have one pool of questions, pairs
        one way.
        """
        if family in self._pairs:
            return int(any(len(task.pairs) > shots for task in self._pairs[family]))
        if family in ("persona", "verdict", "rating"):
            groups = self._personas if family == "persona" else self._debatable
            return sum(len(group.questions) > shots for group in groups)
        own = {"house_reply": self._labelled.get("label", []), **self._labelled, **self._answered}
        enough = [intent for intent in own.get(family, []) if len(intent.questions) > shots]
        places = Counter(_place(intent, family in self._answered) for intent in enough)
        return max(places.values(), default=0)

    def fitting(self, family: str, shape: Shape) -> Shape:
        """``shape`` with no more ways and shots than the family has material for."""
        if family in self._pairs:
            longest = max(len(task.pairs) for task in self._pairs[family])
            return replace(shape, ways=1, shots=min(shape.shots, longest - 1))
        own = {"house_reply": self._labelled.get("label", []), **self._labelled, **self._answered}
        if family not in own:
            return shape
        sizes: dict[str, list[int]] = {}
        for intent in own[family]:
            if len(intent.questions) > 1:
                place = _place(intent, family in self._answered)
                sizes.setdefault(place, []).append(len(intent.questions))
        ways = min(shape.ways, max(map(len, sizes.values()), default=shape.ways))
        if self.picks(family):
            ways = min(ways, max(1, len(self._words) // 2))  # two words a label, at most
        enough = [sorted(s)[-ways] for s in sizes.values() if len(s) >= ways]
        shots = min(shape.shots, max(enough, default=shape.shots + 1) - 1)
        return replace(shape, ways=ways, shots=shots)

    def draw(
        self, family: str, shape: Shape, tokens: tuple[int, int], rng: random.Random
    ) -> Episode:
        """An episode of the family of that name; ``tokens`` are the bounds on house replies."""
        match family:
            case "house_reply":
                return self.house_reply(shape, tokens, rng)
            case "persona":
                return self.persona(shape, rng)
            case "verdict" | "rating":
                return self.judged(shape, rng, family)
        if family in self._answered:
            return self.replies(shape, rng, family)
        if family in self._pairs:
            return self.pairs(family, shape, rng)
        if family != "label" and family not in self._labelled:
            known = ", ".join(self.names) or "none"
            raise DataError(f"there is no material for {family}; there is for {known}")
        return self.label(shape, rng, family)

    def label(self, shape: Shape, rng: random.Random, family: str = "label") -> Episode:
        """N intents, each answered by a label drawn anew (5-way k-shot and the like)."""
        pool = self._labelled.get(family, [])
        intents = self._sample_intents(pool, shape.ways, shape.shots + 1, rng)
        labels = self._labels(len(intents), rng)
        return self._assemble(family, intents, labels, shape, rng, tuple(labels))

    def house_reply(self, shape: Shape, tokens: tuple[int, int], rng: random.Random) -> Episode:
        """N intents, each answered by one sentence of ``tokens`` (least, most) tokens."""
        pool = self._labelled.get("label", [])
        intents = self._sample_intents(pool, shape.ways, shape.shots + 1, rng)
        replies = self._replies(len(intents), tokens, rng)
        return self._assemble("house_reply", intents, replies, shape, rng, ())

    def persona(
        self, shape: Shape, rng: random.Random, among: Sequence[PersonaGroup] | None = None
    ) -> Episode:
        """N questions as one persona answers them; queries are other wordings of these."""
        personas = self._personas if among is None else among
        if not personas:
            raise DataError("no persona question has two wordings or more")
        groups = rng.sample(personas, min(shape.ways, len(personas)))
        name = rng.choice([persona for persona, _ in groups[0].answers])
        intents = [as_intent(group) for group in groups]
        answers = [dict(group.answers).get(name, group.answers[0][1]) for group in groups]
        return self._assemble("persona", intents, answers, shape, rng, ())

    def judged(self, shape: Shape, rng: random.Random, by: Literal["verdict", "rating"]) -> Episode:
        """A persona of which no answer is demonstrated.

        Support of a verdict prefers the persona's answer to another one's; of ratings, every other
        turn has the persona's answer rated up, the rest another one's rated down.
        """
        episode = self.persona(shape, rng, self._debatable)
        groups = {kind_of(as_intent(group)): group for group in self._debatable}
        support = []
        for number, turn in enumerate(episode.support):
            other = rng.choice([a for _, a in groups[turn.kind].answers if a != turn.answer])
            if by == "verdict":
                support.append(replace(turn, rejected=other))
            elif number % 2:
                support.append(replace(turn, answer=other, rating=-1))
            else:
                support.append(replace(turn, rating=1))
        return replace(episode, family=by, support=tuple(support))

    def replies(self, shape: Shape, rng: random.Random, family: str = "replies") -> Episode:
        """N questions with their source's own answers; queries are other wordings of these."""
        pool = self._answered.get(family, [])
        intents = self._sample_intents(pool, shape.ways, shape.shots + 1, rng, True)
        answers = [str(intent.answer) for intent in intents]
        return self._assemble(family, intents, answers, shape, rng, ())

    def pairs(self, family: str, shape: Shape, rng: random.Random) -> Episode:
        """One task of ``family``: pairs to learn from, and others to answer alike."""
        tasks = [t for t in self._pairs.get(family, []) if len(t.pairs) > shape.shots]
        if not tasks:
            raise DataError(f"{family}: no task has more than {shape.shots} prompts")
        task = rng.choice(tasks)
        drawn = rng.sample(task.pairs, min(len(task.pairs), shape.shots + shape.queries))
        # Prompts of a task need not be alike, so that each is a kind of its own.
        turns = [
            Turn(p.prompt, p.completion, kind_of_pair(task, p.prompt), p.rejected, 0, p.pattern)
            for p in drawn
        ]
        taught = frozenset(kind_of_pair(task, pair.prompt) for pair in task.pairs)
        support, query = turns[: shape.shots], turns[shape.shots :]
        return Episode(family, tuple(support), tuple(query), (), taught)

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

    def _sample_intents(
        self,
        intents: Sequence[Intent],
        ways: int,
        questions: int,
        rng: random.Random,
        own_answers: bool = False,
    ) -> list[Intent]:
        pools: dict[str, list[Intent]] = {}
        for intent in intents:
            if len(intent.questions) >= questions:
                pools.setdefault(_place(intent, own_answers), []).append(intent)
        sources = [source for source, pool in pools.items() if len(pool) >= ways]
        if not sources:
            raise DataError(f"no source has {ways} intents with {questions} questions or more each")
        weights = [min(len(pools[source]), LARGEST_POOL) ** 0.5 for source in sources]
        pool = pools[rng.choices(sources, weights)[0]]
        if self._difficulty is None:
            return rng.sample(pool, ways)
        return self._difficulty.sample(pool, [kind_of(intent) for intent in pool], ways, rng)

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


def _place(intent: Intent, own_answers: bool) -> str:
    """What all intents of an episode have in common.

    Across sources the same intent may go by two names; across domains the same question may have
    two answers of its own.
    """
    return f"{intent.source}/{intent.domain}" if own_answers else intent.source
