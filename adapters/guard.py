"""Accepts, shortens or refuses an adapted adapter before anybody is served with it.

Knows tensors and losses; nothing about sessions, and never changes what it judges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    reason: str | None = None  # why not, or why not whole; None when all of it is accepted
    scale: float = 1.0

    def instead_of(self, whole: Verdict) -> Verdict:
        """This verdict, accepting a part of an update the whole of which was refused."""
        return replace(self, reason=f"taken at {self.scale:g} of its length: {whole.reason}")


DEFAULT_LIMITS: Final = GuardLimits()


def parts(halvings: int) -> tuple[float, ...]:
    """The parts of a refused update that are judged, one after the other, until one is accepted.

    Backtracking (Armijo 1966) with the guard as its condition.
    """
    return tuple(0.5**times for times in range(1, halvings + 1))


def shorten(
    adapted: Mapping[str, Tensor], session_init: Mapping[str, Tensor], factors: Sequence[float]
) -> dict[str, Tensor]:
    """The adapters of S sessions at these parts of their updates; where that is 1, bit for bit.

    Args:
        adapted: stacked adapters, first axis S.
        session_init: where the updates began, one adapter, or a stacked one of each.
    """
    if all(factor == 1 for factor in factors):
        return dict(adapted)
    moved = {}
    for name, tensor in adapted.items():
        weights = tensor.new_tensor(factors).view(-1, *[1] * (tensor.ndim - 1))
        moved[name] = torch.lerp(session_init[name].expand_as(tensor), tensor, weights)
    return moved


def norm(tensors: Mapping[str, Tensor]) -> float:
    """Euclidean norm over all tensors together, in float64; finite where all values are."""
    norms = [torch.linalg.vector_norm(t.detach(), dtype=torch.float64) for t in tensors.values()]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def update_norm(adapted: Mapping[str, Tensor], session_init: Mapping[str, Tensor]) -> float:
    """How far an adapter's parameters are from those that every derivation starts with.

    How far the weights change by that is another number: `adapters.norms`.
    """
    return norm({name: tensor - session_init[name] for name, tensor in adapted.items()})


def check(
    adapted: Mapping[str, Tensor],
    session_init: Mapping[str, Tensor],
    loss_before: float,
    loss_after: float,
    limits: GuardLimits = DEFAULT_LIMITS,
    scale: float = 1.0,
) -> Verdict:
    """Judge one session's adapted adapter.

    The update is measured from session_init, or from the house's version, where it began, not from
    the version before, so that many small updates cannot walk away together.

    Args:
        loss_before: mean loss on the feedback before the first step, in nats.
        loss_after: the same loss with ``adapted``.
        scale: the part of the update that ``adapted`` has; it goes into the verdict.

    Returns:
        Refused when a value is not finite, when the update is longer than the limit, or when the
        loss on the feedback rose.
    """
    length = update_norm(adapted, session_init)
    if not math.isfinite(length):
        return Verdict(False, "the adapted weights are not finite")
    bound = limits.update_ratio * norm(session_init)
    if not length <= bound:
        return Verdict(False, f"the update has norm {length:.3g}, over the bound of {bound:.3g}")
    if not loss_after <= loss_before:  # also refuses NaN
        return Verdict(
            False, f"the loss on the feedback did not fall: {loss_before:.3g} to {loss_after:.3g}"
        )
    return Verdict(True, scale=scale)
