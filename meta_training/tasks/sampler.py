"""Draws the batches of an outer loop: which family, which shape, which unrelated questions.

Knows families and pools; nothing about models beyond the answers a pool asks for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from adapters.chat import ChatEncoder
from meta_training.tasks.batches import Batch, UnrelatedPool, encode_batch
from meta_training.tasks.difficulty import Difficulty
from meta_training.tasks.episodes import Episode, Shape, mistaught
from meta_training.tasks.families import Families
from meta_training.tasks.sources import DataError

# Longest replies of a batch, in tokens: one band a batch keeps rows about equally long.
REPLY_BANDS = ((4, 10), (8, 16), (8, 20), (12, 30))
LABEL_WAYS = (2, 3, 5, 5, 5, 8, 10, 10, 20)
PAIR_SHOTS = (1, 2, 3, 4, 5, 5)
EPISODE_ROWS = 60  # support examples of one label episode, at most
BATCH_ROWS = 120  # of a label batch: larger episodes come fewer at a time


class EpisodeSampler:
    """Batches of episodes of one family each, in shapes that vary from batch to batch."""

    def __init__(
        self,
        families: Families,
        pool: UnrelatedPool,
        encoder: ChatEncoder,
        weights: Mapping[str, float],
        tasks: int,
        room_tokens: int = 0,
        wrong_share: float = 0.0,
        difficulty: Difficulty | None = None,
    ) -> None:
        """Draw families by ``weights``, at most ``tasks`` episodes a batch.

        ``difficulty``: what ``families`` draw by, which is told what batches cost.
        ``wrong_share``: of an episode's examples that are taught another class's answer.
        ``room_tokens``: where it is not 0, queries come after as much of their episode's support
        as a prompt of so many tokens holds.
        """
        self._families = families
        self._pool = pool
        self._encoder = encoder
        self._weights = dict(weights)
        self._tasks = tasks
        self._room_tokens = room_tokens
        self._wrong_share = wrong_share
        self.difficulty = difficulty
        missing = [name for name in weights if weights[name] and name not in families.names]
        if missing:
            raise DataError(
                f"outer.families: there is nothing to draw {', '.join(missing)} from; the data has "
                f"tasks for {', '.join(families.names) or 'none'}"
            )

    def batch(self, rng: random.Random, unrelated: int = 3) -> Batch:
        """A batch of episodes of one shape with ``unrelated`` unrelated questions each."""
        family = rng.choices(list(self._weights), list(self._weights.values()))[0]
        count, draw = self._drawer(family, rng)
        episodes = [draw() for _ in range(count)]
        if self._wrong_share:
            episodes = [mistaught(episode, self._wrong_share, rng) for episode in episodes]
        others = [self._pool.draw(episode, unrelated, rng) for episode in episodes]
        return encode_batch(episodes, others, self._encoder, self._room_tokens)

    def never_unrelated(self) -> list[str]:
        """Families that are drawn and whose smallest episode teaches every kind of question."""
        drawn = [family for family, weight in self._weights.items() if weight]
        return [family for family in drawn if self._pool.kinds <= self._smallest(family).taught]

    def _smallest(self, family: str) -> Episode:
        asked = "label" if family == "house_reply" else family  # the same intents are taught
        ways = min(LABEL_WAYS) if self._families.picks(family) else 1
        shape = self._families.fitting(asked, Shape(ways, 1, 1))
        return self._families.draw(asked, shape, (0, 0), random.Random(0))

    def _drawer(self, family: str, rng: random.Random) -> tuple[int, Callable[[], Episode]]:
        drawn = self._families
        if drawn.picks(family):
            ways = rng.choice(LABEL_WAYS)
            shots = min(rng.choice((1, 2, 3, 5)), EPISODE_ROWS // ways)
            shape = drawn.fitting(family, Shape(ways, shots, 2 if ways <= 5 else 1))
            count = max(1, min(self._tasks, BATCH_ROWS // (shape.ways * shape.shots)))
            return count, lambda: drawn.label(shape, rng, family)
        if drawn.is_pairs(family):
            shape = drawn.fitting(family, Shape(1, rng.choice(PAIR_SHOTS), 3))
            return self._tasks, lambda: drawn.pairs(family, shape, rng)
        if family != "house_reply":  # answers that nobody draws
            shape = drawn.fitting(family, Shape(rng.choice((1, 2, 3)), rng.choice((1, 2, 3)), 2))
            return self._tasks, lambda: drawn.draw(family, shape, (0, 0), rng)
        ways = rng.choice((1, 1, 2, 3))
        shots = rng.choice((1, 2, 3, 4, 5, 5)) if ways == 1 else rng.choice((1, 2, 3, 3))
        shape = drawn.fitting(family, Shape(ways, shots, 3 if ways == 1 else 2))
        band = rng.choice(REPLY_BANDS)
        return self._tasks, lambda: drawn.house_reply(shape, band, rng)
