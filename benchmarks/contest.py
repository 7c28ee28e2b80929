"""Contenders taking turns: the order is reversed every round, and the first round thrown away.

Knows clocks and order; knows nothing about what the contenders do.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal, NoReturn

from tqdm import tqdm

Tokens = tuple[tuple[int, ...], ...]  # by row


@dataclass(frozen=True)
class Outcome:
    """What a contender says about one go."""

    answers: Tokens = ()
    decoded_tokens: int = 0  # after the moment when every row had its first token
    decoding_s: float = 0.0  # what those took
    losses: tuple[float, ...] = ()  # of the first session, before every step
    cpu_elsewhere_s: float = 0.0  # of a process that works for the contender


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a contest."""

    name: str
    run: Callable[[], Awaitable[Outcome]]
    against: str | None = None  # whose time ours is compared with
    same_as: str | None = None  # who must choose the same tokens


@dataclass(frozen=True)
class Contest:
    """Contenders with the same work."""

    task: Literal["adapt", "decode"]
    sessions: int
    contenders: tuple[Contender, ...]


@dataclass(frozen=True)
class Go:
    """One timed go. ``cpu_s`` counts the contender's processes, and nobody else's load."""

    wall_s: float
    cpu_s: float
    outcome: Outcome


@dataclass
class Standing:
    """All timed goes of one contender, in the order of the rounds."""

    contender: Contender
    goes: list[Go] = field(default_factory=list)


async def hold(contest: Contest, rounds: int, progress: tqdm[NoReturn]) -> dict[str, Standing]:
    """Let everybody run once unmeasured, then ``rounds`` times, in alternating order.

    The first round fills caches and slots, and lets lazy imports and allocations happen.
    """
    standings = {c.name: Standing(c) for c in contest.contenders}
    for turn in range(rounds + 1):
        order = contest.contenders if turn % 2 == 0 else contest.contenders[::-1]
        for contender in order:
            progress.set_description(f"{contest.task} ×{contest.sessions}: {contender.name}")
            go = await _timed(contender)
            progress.update()
            if turn > 0:
                standings[contender.name].goes.append(go)
    return standings


async def _timed(contender: Contender) -> Go:
    gc.collect()  # nobody pays for another one's garbage
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    outcome = await contender.run()
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return Go(wall_s, cpu_s + outcome.cpu_elsewhere_s, outcome)


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of one value over the rounds."""

    median: float
    least: float
    greatest: float


def spread(values: Sequence[float]) -> Spread:
    """Sum up the rounds."""
    return Spread(median(values), min(values), max(values))


def ratios(mine: Standing, others: Standing, value: Callable[[Go], float]) -> Spread:
    """How many times less than the other one, round by round."""
    return spread([value(b) / value(a) for a, b in zip(mine.goes, others.goes, strict=True)])
