"""How hard each class was lately, so that hard ones are drawn more often.

The simplest form of a curriculum by loss: importance sampling by a moving average of what a class
cost (as in prioritised replay, Schaul et al. 2016, arXiv 1511.05952, section 3.3, with classes for
transitions). Knows names and numbers; nothing about texts or models.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

KEPT = 0.7  # of an average when a new value comes in
LEAST, MOST = 0.25, 4.0  # of a class's weight, where the mean class has 1

Item = TypeVar("Item")


class Difficulty:
    """Moving averages of losses by kind."""

    def __init__(self) -> None:
        """Begin with no losses: all kinds are drawn alike."""
        self._losses: dict[str, float] = {}

    def note(self, kinds: Sequence[str], losses: Iterable[float]) -> None:
        """Take in what the queries of ``kinds`` cost, one value each."""
        for kind, loss in zip(kinds, losses, strict=True):
            before = self._losses.get(kind, loss)
            if math.isfinite(loss):
                self._losses[kind] = KEPT * before + (1 - KEPT) * loss

    def weights(self, kinds: Sequence[str]) -> list[float]:
        """How often to draw each kind; 1 is for mean loss, and for what is not known yet."""
        mean = sum(self._losses.values()) / max(1, len(self._losses))
        if not mean > 0:
            return [1.0] * len(kinds)
        known = (self._losses.get(kind, mean) for kind in kinds)
        return [min(max(loss / mean, LEAST), MOST) for loss in known]

    def sample(
        self, items: Sequence[Item], kinds: Sequence[str], count: int, rng: random.Random
    ) -> list[Item]:
        """``count`` different items by their kinds' weights, without replacement.

        Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir": the largest of
        u^(1/w).
        """
        keys = [rng.random() ** (1 / weight) for weight in self.weights(kinds)]
        order = sorted(range(len(items)), key=keys.__getitem__, reverse=True)
        return [items[place] for place in order[:count]]

    def state_dict(self) -> dict[str, Any]:
        """The averages so far."""
        return {"losses": dict(self._losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from earlier averages."""
        self._losses = dict(state_dict["losses"])
