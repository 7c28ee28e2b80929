"""Which of a session's items an inner step is taken over, where there are too many for all of them.

Few items are learned all at every step, as in meta-training. Of many, each step takes a part, and a
pass takes every item once: the same cost, and as many more steps as there are parts. Knows numbers
of items only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Final

ITEMS_A_STEP: Final = 16
"""Most items of a step. Meta-training's tasks have up to 25, short ones, and mostly 5 to 15."""


def steps_a_pass(count: int, size: int | None = ITEMS_A_STEP) -> int:
    """How many steps it takes to learn ``count`` items once; without a ``size``, one."""
    return 1 if size is None else -(-count // size)


def minibatches(
    count: int, passes: int, size: int | None = ITEMS_A_STEP
) -> Iterator[Sequence[int]]:
    """Places of ``count`` items for every step of ``passes`` passes, at most ``size`` a step.

    Where all fit, every step is over all of them. Which items go together is drawn anew for each
    pass, from ``count`` alone: the same items give the same adapter.
    """
    parts, rng = steps_a_pass(count, size), random.Random(count)
    for _ in range(passes):
        order: Sequence[int] = range(count)
        if parts > 1:
            order = rng.sample(order, count)
        for part in range(parts):
            yield order[part::parts]
