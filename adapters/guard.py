"""Accepts or refuses an adapted adapter before anybody is served with it.

Knows tensors and losses; nothing about sessions, and never changes what it judges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor


@dataclass(frozen=True)
class GuardLimits:
    """How far an adapter may go.

    ``update_ratio``: longest update, as a multiple of session_init's norm. Good updates measured
    0.3 (meta-learned rule, 3 to 10 steps) and 0.15 to 0.5 (plain models), diverged ones 2.
    """

    update_ratio: float = 1.0


@dataclass(frozen=True)
class Verdict:
    """What the guard says: ``scale`` is the factor on the update that is accepted."""

    accepted: bool
    reason: str | None = None  # why not; None when accepted
    scale: float = 1.0


DEFAULT_LIMITS: Final = GuardLimits()


def norm(tensors: Mapping[str, Tensor]) -> float:
    """Euclidean norm over all tensors together."""
    squares = [tensor.detach().double().square().sum() for tensor in tensors.values()]
    return float(torch.stack(squares).sum().sqrt())


def update_norm(adapted: Mapping[str, Tensor], session_init: Mapping[str, Tensor]) -> float:
    """How far an adapter is from where every derivation starts."""
    return norm({name: tensor - session_init[name] for name, tensor in adapted.items()})


def check(
    adapted: Mapping[str, Tensor],
    session_init: Mapping[str, Tensor],
    loss_before: float,
    loss_after: float,
    limits: GuardLimits = DEFAULT_LIMITS,
) -> Verdict:
    """Judge one session's adapted adapter.

    The update is measured from session_init, not from the version before, so that many small
    updates cannot walk away together.

    Args:
        loss_before: mean loss on the feedback before the first step, in nats.
        loss_after: the same loss with ``adapted``.

    Returns:
        Refused when a value is not finite, when the update is longer than the limit, or when the
        loss on the feedback rose.
    """
    if not all(bool(torch.isfinite(tensor).all()) for tensor in adapted.values()):
        return Verdict(False, "the adapted weights are not finite")
    length, bound = update_norm(adapted, session_init), limits.update_ratio * norm(session_init)
    if not length <= bound:
        return Verdict(False, f"the update has norm {length:.3g}, over the bound of {bound:.3g}")
    if not loss_after <= loss_before:  # also refuses NaN
        return Verdict(
            False, f"the loss on the feedback did not fall: {loss_before:.3g} to {loss_after:.3g}"
        )
    return Verdict(True)
