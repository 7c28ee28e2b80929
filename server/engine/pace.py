"""How learning and answering share the engine's time. Knows seconds only."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Pace:
    """Keeps learning to a share of the time while others wait for answers."""

    def __init__(self, learn_share: float) -> None:
        """Owe nothing yet. ``learn_share``: between 0 and 1, both excluded."""
        self._price = (1 - learn_share) / learn_share  # serving seconds per second of learning
        self._owed_s = 0.0  # serving time that learning has to wait for

    @property
    def learning_is_due(self) -> bool:
        """Whether answering has had its share since the last micro-step."""
        return self._owed_s <= 0

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Count the time inside the block as answering."""
        began_s = time.perf_counter()
        yield
        self._owed_s = max(0.0, self._owed_s - (time.perf_counter() - began_s))

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Count the time inside the block as learning."""
        began_s = time.perf_counter()
        yield
        self._owed_s += (time.perf_counter() - began_s) * self._price
