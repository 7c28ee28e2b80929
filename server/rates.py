"""How much of something in how much time, as people write it: `50/s`, `50/s:200`, `1000/h`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

UNITS_S: Mapping[str, int] = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LARGEST = 1_000_000

_RATE = re.compile(r"(\d{1,7})/([smhd])(?::(\d{1,7}))?")


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in a second on average, and so many at once after a pause."""

    per_s: float
    burst: int


def parse_rate(text: str) -> Rate:
    """Read `NUMBER/UNIT` or `NUMBER/UNIT:BURST`; without a burst, a unit's worth may come at once.

    Raises:
        ValueError: it is none.
    """
    found = _RATE.fullmatch(text.strip())
    number, burst = (int(found[1]), int(found[3] or found[1])) if found else (0, 0)
    if found is None or not (1 <= number <= LARGEST and 1 <= burst <= LARGEST):
        raise ValueError(
            f"{text!r} is no rate: write NUMBER/UNIT or NUMBER/UNIT:BURST, numbers from 1 to "
            f"{LARGEST} and the unit s, m, h or d, as in 50/s:200"
        )
    return Rate(number / UNITS_S[found[2]], burst)
