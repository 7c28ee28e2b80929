"""THE inner step: change adapters by one gradient step on feedback, many sessions at once.

Meta-training differentiates through it and the server executes it; there is no other. Its two
halves, `gradients_of` and `move`, take any loss of any named tensors; the rest is that loss for a
causal LM and its feedback. Knows nothing about where examples come from, who owns a session, or
what happens to the result.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from adapters.config import InnerRule, SpecError
from adapters.layer import LoraHooks, Rows, rows_of
from adapters.objective import (
    completion_logprobs,
    demonstration_loss,
    divergence,
    feedback_loss,
)
from adapters.state import Tensors
from adapters.support import Support

Losses = Callable[[Mapping[str, Tensor]], Tensor]  # stacked tensors -> each session's loss, (S,)


@dataclass(frozen=True)
class StepReport:
    """What one inner step saw, before it moved: losses and gradient norms, (S,) each."""

    losses: Tensor
    gradient_norms: Tensor


def reference_logprobs(model: nn.Module, hooks: LoraHooks, support: Support) -> Tensor:
    """(B,) log-probability of each completion of ``support`` under the untaught model."""
    with torch.no_grad(), hooks.use(None):
        logits = support.turns.logits(model)
        return completion_logprobs(logits, support.turns.targets)


def support_losses(
    model: nn.Module,
    hooks: LoraHooks,
    tensors: Mapping[str, Tensor] | None,
    support: Support,
    anchor_weight: Tensor | float,
) -> Tensor:
    """Each session's loss, (S,): mean over its examples, plus the weighted mean over anchors.

    Without ``tensors`` it is the untaught model's, which has none on anchors.

    Raises:
        SpecError: a preference or a rating has no reference.
    """
    losses = torch.zeros(support.count, device=support.sessions.device)
    if len(support.sessions):
        active = support.turns.active
        rows = None if tensors is None else rows_of(tensors, support.sessions, active)
        with hooks.use(rows):
            logits = support.turns.logits(model)
        row_losses = _row_losses(logits, support) * support.weights
        losses = losses.to(row_losses.dtype).index_add(0, support.sessions, row_losses)
    if support.anchors is None or tensors is None:
        return losses
    return losses + anchor_weight * _anchor_losses(model, hooks, tensors, support)


def _row_losses(logits: Tensor, support: Support) -> Tensor:
    if support.roles is None:
        return demonstration_loss(logits, support.turns.targets)
    if support.reference is None:
        raise SpecError("preferences and ratings need the untaught model's log-probabilities")
    return feedback_loss(logits, support.turns.targets, support.roles, support.reference)


def _anchor_losses(
    model: nn.Module, hooks: LoraHooks, tensors: Mapping[str, Tensor], support: Support
) -> Tensor:
    anchors = support.anchors
    assert anchors is not None
    count, device = anchors.turns.ids.shape[0], anchors.turns.ids.device
    every = torch.arange(count, device=device).repeat(support.count)  # (S * A,)
    turns = anchors.turns.select(every)
    with hooks.use(Rows(tensors, None, turns.active)):
        logits = turns.logits(model)
    kl = divergence(logits, anchors.reference.index_select(0, every), turns.targets)
    return kl.view(support.count, count).mean(1)


def inner_step(
    model: nn.Module,
    hooks: LoraHooks,
    tensors: Mapping[str, Tensor],
    support: Support,
    sizes: Mapping[str, Tensor],
    clip: float,
    anchor_weight: Tensor | float = 0.0,
    differentiable: bool = False,
    second_order: bool = True,
) -> tuple[Tensors, StepReport]:
    """One gradient step of every session on its own feedback; ``descend`` on its support's loss.

    The batch sums over sessions, so no session sees another.
    """

    def losses_of(tensors: Mapping[str, Tensor]) -> Tensor:
        return support_losses(model, hooks, tensors, support, anchor_weight)

    return descend(losses_of, tensors, sizes, clip, differentiable, second_order)


def descend(
    losses_of: Losses,
    tensors: Mapping[str, Tensor],
    sizes: Mapping[str, Tensor],
    clip: float,
    differentiable: bool = False,
    second_order: bool = True,
) -> tuple[Tensors, StepReport]:
    """One gradient step on any loss.

    A session's gradient is scaled down to norm ``clip`` where it is longer, then every tensor
    moves by its own step size (MAML, Finn et al. 2017, arXiv 1703.03400, eq. 1; per-tensor sizes:
    MAML++, arXiv 1810.09502; element-wise ones: Meta-SGD, arXiv 1707.09835, eq. 1).

    Args:
        tensors: stacked adapters, first axis S.
        sizes: step size of every tensor that moves, scalars or of a session's tensor's shape. The
            other tensors stay as they are.
        differentiable: keep the graph, so that the result can be differentiated with respect to
            the base, the adapters and the sizes.
        second_order: differentiate through the gradients too (exact MAML); without it they count
            as constants (first-order MAML).

    Returns:
        The moved adapters and what the step saw.
    """
    losses, gradients = gradients_of(losses_of, tensors, sizes, differentiable, second_order)
    moved, norms = move(tensors, gradients, sizes, clip)
    if not differentiable:
        moved = {name: tensor.detach() for name, tensor in moved.items()}
    return moved, StepReport(losses.detach(), norms.detach())


def support_gradients(
    model: nn.Module,
    hooks: LoraHooks,
    tensors: Mapping[str, Tensor],
    support: Support,
    anchor_weight: Tensor | float = 0.0,
    moving: Collection[str] | None = None,
) -> tuple[Tensor, Tensors]:
    """``gradients_of`` a support's losses. Those of its parts add up to those of the whole."""

    def losses_of(tensors: Mapping[str, Tensor]) -> Tensor:
        return support_losses(model, hooks, tensors, support, anchor_weight)

    return gradients_of(losses_of, tensors, tensors if moving is None else moving)


def gradients_of(
    losses_of: Losses,
    tensors: Mapping[str, Tensor],
    moving: Collection[str],
    differentiable: bool = False,
    second_order: bool = True,
) -> tuple[Tensor, Tensors]:
    """The first half of a step: each session's loss, (S,), and the gradients, S first.

    ``moving`` names the tensors that get one. The other arguments are as of ``descend``.
    """
    with torch.enable_grad():
        if not differentiable:
            tensors = {
                name: tensor.detach().requires_grad_(name in moving)
                for name, tensor in tensors.items()
            }
        # Fused attention has no second derivative (pytorch#116350).
        with sdpa_kernel(SDPBackend.MATH) if differentiable and second_order else nullcontext():
            losses = losses_of(tensors)
        names = [name for name in tensors if name in moving]
        gradients = torch.autograd.grad(
            losses.sum(),
            [tensors[name] for name in names],
            create_graph=differentiable and second_order,
            retain_graph=differentiable,
        )
    if not differentiable:
        losses = losses.detach()
    return losses, dict(zip(names, gradients, strict=True))


def move(
    tensors: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    sizes: Mapping[str, Tensor],
    clip: float,
) -> tuple[Tensors, Tensor]:
    """The second half: the moved adapters, and the gradients' norms, (S,), before the clip.

    A tensor without a gradient stays as it is.
    """
    squares = torch.stack([g.pow(2).flatten(1).sum(1) for g in gradients.values()]).sum(0)
    norms = (squares + 1e-12).sqrt()
    factors = (clip / norms).clamp(max=1.0)
    moved = {
        name: torch.addcmul(
            tensor, sizes[name] * _per_session(factors, tensor), gradients[name], value=-1
        )
        if name in gradients
        else tensor
        for name, tensor in tensors.items()
    }
    return moved, norms


def adapt(
    model: nn.Module,
    hooks: LoraHooks,
    tensors: Mapping[str, Tensor],
    support: Support,
    rule: InnerRule,
    steps: int | None = None,
    differentiable: bool = False,
    second_order: bool = True,
) -> tuple[Tensors, list[StepReport]]:
    """Take ``steps`` inner steps (the rule's K by default) from ``tensors``."""
    reports = []
    moved = dict(tensors)
    for step in range(rule.steps if steps is None else steps):
        moved, report = inner_step(
            model,
            hooks,
            moved,
            support,
            rule.sizes_at(step),
            rule.clip,
            rule.anchor_weight,
            differentiable,
            second_order,
        )
        reports.append(report)
    return moved, reports


def _per_session(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
