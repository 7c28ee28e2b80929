"""How alike texts are by the tokens that they share, where a model has no gate to ask.

Cosines of bags of tokens, each weighted by how few of the texts have it (Spärck Jones 1972). Knows
tokens only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence


def overlaps(asked: Sequence[int], others: Sequence[Sequence[int]]) -> list[float]:
    """The cosine of ``asked`` with each of ``others``; 0 where they share no token."""
    bags = [Counter(text) for text in (asked, *others)]
    spread = Counter(token for bag in bags for token in bag)
    rarity = {token: math.log(1 + len(bags) / count) for token, count in spread.items()}
    first, *rest = [_unit(bag, rarity) for bag in bags]
    return [sum(first.get(token, 0.0) * weight for token, weight in bag.items()) for bag in rest]


def _unit(bag: Mapping[int, int], rarity: Mapping[int, float]) -> dict[int, float]:
    weights = {token: count * rarity[token] for token, count in bag.items()}
    length = math.sqrt(sum(weight**2 for weight in weights.values())) or 1.0
    return {token: weight / length for token, weight in weights.items()}
