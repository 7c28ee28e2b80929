"""What to do and when: Poisson arrivals of visits to sessions whose popularity is Zipf's."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np


class Kind(StrEnum):
    """What a visitor came for."""

    ASK = "ask"  # one turn of a chat
    ADAPT = "adapt"  # teach examples, then ask for one of them
    FEEDBACK = "feedback"  # ask, correct the answer, ask again


@dataclass(frozen=True)
class Load:
    """A load. Shares are of all arrivals; what they leave are questions."""

    rate: float = 5.0  # arrivals a second, in the mean
    duration_s: float = 30.0  # counted
    warmup_s: float = 5.0  # sent as well, before, and not counted
    sessions: int = 100
    zipf: float = 1.0  # the session of rank r is visited in proportion to r ** -zipf; 0: all alike
    adapts: float = 0.1
    feedback: float = 0.05
    examples: int = 2  # of one lesson
    turns: int = 3  # of a chat, before the session begins another
    max_tokens: int = 32  # of an answer
    stream: bool = True
    timeout_s: float = 120.0
    seed: int = 0

    @property
    def whole_s(self) -> float:
        """From the first arrival's clock to the last's."""
        return self.warmup_s + self.duration_s


@dataclass(frozen=True, slots=True)
class Arrival:
    """A visit: ``due_s`` from the beginning; ``draw`` chooses its texts."""

    due_s: float
    session: int
    kind: Kind
    draw: int


def arrivals(load: Load) -> list[Arrival]:
    """All visits of a load, in order; equal loads have equal ones."""
    random = np.random.default_rng(load.seed)
    count = random.poisson(load.rate * load.whole_s)
    # Given how many there are, a Poisson process' arrivals are uniform and independent.
    due_s = np.sort(random.uniform(0, load.whole_s, count))
    sessions = zipf_ranks(random, load.sessions, load.zipf, count)
    what = random.uniform(size=count)
    draws = random.integers(2**31, size=count)
    return [
        Arrival(float(due), int(session), _kind(load, float(part)), int(draw))
        for due, session, part, draw in zip(due_s, sessions, what, draws, strict=True)
    ]


def zipf_ranks(
    random: np.random.Generator, sessions: int, exponent: float, count: int
) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Draw ``count`` ranks below ``sessions``, rank r in proportion to (r + 1) ** -exponent."""
    shares = np.cumsum(np.arange(1, sessions + 1, dtype=np.float64) ** -exponent)
    ranks = np.searchsorted(shares, random.uniform(0, shares[-1], count), side="right")
    return np.minimum(ranks, sessions - 1).astype(np.int64)


def _kind(load: Load, part: float) -> Kind:
    if part < load.adapts:
        return Kind.ADAPT
    return Kind.FEEDBACK if part < load.adapts + load.feedback else Kind.ASK
