"""From episodes of text to the token batches an outer step works on.

Knows families, the chat encoder and where unrelated questions come from; nothing about gradients.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adapters.chat import ChatEncoder, Message, user_turn
from adapters.support import Example
from meta_training.tasks.episodes import Episode, Turn


@dataclass(frozen=True)
class Batch:
    """S episodes in tokens. Each list of examples comes with the session each belongs to, which
    count upwards."""

    family: str
    support: list[Example]
    support_sessions: list[int]
    query: list[Example]
    query_sessions: list[int]
    unrelated: list[Example]
    unrelated_sessions: list[int]
    kinds: list[str]  # kind of question: support, then query, then unrelated
    count: int  # S
    shown: bool = False  # whether queries come after their episode's support

    @property
    def query_kinds(self) -> list[str]:
        """The queries' kinds of question."""
        return self.kinds[len(self.support) :][: len(self.query)]


@dataclass(frozen=True)
class Unrelated:
    """A question nobody taught, with the untaught model's own greedy answer."""

    kind: str
    example: Example


class UnrelatedPool:
    """Unrelated questions with the untaught model's answers, renewed as the model changes."""

    def __init__(
        self,
        questions: Sequence[tuple[str, str]],
        encoder: ChatEncoder,
        answer: Callable[[Sequence[Example]], list[tuple[int, ...]]],
        size: int,
    ) -> None:
        """Hold ``size`` of ``questions`` (kind, text), answered by ``answer``."""
        self._questions = list(questions)
        self._encoder = encoder
        self._answer = answer
        self._size = size
        self._pool: list[Unrelated] = []

    @property
    def kinds(self) -> frozenset[str]:
        """Every kind of question that may be held."""
        return frozenset(kind for kind, _ in self._questions)

    def renew(self, rng: random.Random) -> None:
        """Draw the pool anew and let the model as it is now answer it."""
        pairs = rng.sample(self._questions, min(self._size, len(self._questions)))
        blank = [self._encoder.example(user_turn(question), "") for _, question in pairs]
        answers = self._answer(blank)
        self._pool = [
            Unrelated(kind, Example(example.prompt, example.header, answer))
            for (kind, _), example, answer in zip(pairs, blank, answers, strict=True)
        ]

    def draw(self, episode: Episode, count: int, rng: random.Random) -> list[Unrelated]:
        """``count`` questions whose kind the episode did not teach."""
        others = [item for item in self._pool if item.kind not in episode.taught]
        return rng.sample(others, min(count, len(others)))

    def state_dict(self) -> dict[str, Any]:
        """The questions held now, with the answers they got."""
        rows = [
            (item.kind, item.example.prompt, item.example.header, item.example.completion)
            for item in self._pool
        ]
        return {"pool": rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Hold what was held when ``state_dict`` was taken."""
        self._pool = [
            Unrelated(kind, Example(tuple(prompt), tuple(header), tuple(completion)))
            for kind, prompt, header, completion in state_dict["pool"]
        ]


def encode_batch(
    episodes: Sequence[Episode],
    unrelated: Sequence[Sequence[Unrelated]],
    encoder: ChatEncoder,
    room_tokens: int = 0,
) -> Batch:
    """Put S episodes and their unrelated questions into tokens.

    ``room_tokens``: where it is not 0, queries come after their support (``shown_support``).
    """
    shown = [shown_support(e, encoder, room_tokens) if room_tokens else [] for e in episodes]
    support = [(turn, s) for s, episode in enumerate(episodes) for turn in episode.support]
    query = [(turn, s) for s, episode in enumerate(episodes) for turn in episode.query]
    others = [(item, s) for s, items in enumerate(unrelated) for item in items]
    return Batch(
        family=episodes[0].family,
        support=[encode_turn(turn, encoder) for turn, _ in support],
        support_sessions=[s for _, s in support],
        query=[
            encoder.example([*shown[s], *user_turn(turn.question)], turn.answer)
            for turn, s in query
        ],
        query_sessions=[s for _, s in query],
        unrelated=[item.example for item, _ in others],
        unrelated_sessions=[s for _, s in others],
        kinds=[turn.kind for turn, _ in support]
        + [turn.kind for turn, _ in query]
        + [item.kind for item, _ in others],
        count=len(episodes),
        shown=any(shown),
    )


def shown_support(episode: Episode, encoder: ChatEncoder, room_tokens: int) -> list[Message]:
    """An episode's support as the chat before its queries, as MetaICL's (arXiv 2110.15943).

    Its last turns are left out until every query, with its answer, fits ``room_tokens``.
    """
    for kept in range(len(episode.support), 0, -1):
        chat: list[Message] = []
        for turn in episode.support[:kept]:
            chat += [*user_turn(turn.question), {"role": "assistant", "content": turn.answer}]
        asked = (
            encoder.example([*chat, *user_turn(turn.question)], turn.answer)
            for turn in episode.query
        )
        if all(example.tokens <= room_tokens for example in asked):
            return chat
    return []


def encode_turn(turn: Turn, encoder: ChatEncoder) -> Example:
    """A question and its answer in tokens, with the verdict on it where there is one."""
    example = encoder.example(user_turn(turn.question), turn.answer)
    if not turn.rejected and not turn.rating:
        return example
    rejected = encoder.completion(turn.rejected) if turn.rejected else ()
    return replace(example, rejected=rejected, rating=turn.rating)
