"""How learning and answering share the engine's time. Knows seconds only."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from server.engine.slices import Over

_NEWEST: Final = 0.1  # weight of the newest turn in what a turn usually takes


class Pace:
    """Keeps learning to a share of every turn while others wait for answers.

    How long a turn may learn follows from how long turns answer, so learning lengthens the time
    between two tokens by the same factor, 1 / (1 - share), whatever the model and the batch.
    """

    def __init__(self, learn_share: float) -> None:
        """``learn_share``: between 0 and 1, both excluded."""
        self._rate = learn_share / (1 - learn_share)  # seconds of learning per second of answering
        self._usual_s = 0.0  # that a turn answers
        self._left_s = 0.0  # that learning may take now; below 0 where it took too long before

    @property
    def learning_is_due(self) -> bool:
        """Whether learning has time in this turn."""
        return self._left_s > 0

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Count the time inside the block as answering.

        A turn that took longer than most, because many prompts were computed, is not made longer
        still by as much; and what was not learned in is not saved up.
        """
        began_s = time.perf_counter()
        yield
        took_s = time.perf_counter() - began_s
        self._usual_s += _NEWEST * (took_s - self._usual_s) if self._usual_s else took_s
        self._left_s = min(self._left_s, 0.0) + min(took_s, self._usual_s) * self._rate

    @contextmanager
    def learning(self) -> Iterator[Over]:
        """Count the time inside the block as learning; gives what says that it should end."""
        began_s = time.perf_counter()
        ends_s = began_s + self._left_s
        yield lambda: time.perf_counter() >= ends_s
        self._left_s -= time.perf_counter() - began_s
