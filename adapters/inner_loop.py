"""THE inner step: change adapters by one gradient step on feedback, many sessions at once.

Meta-training differentiates through it and the server executes it; there is no other. Knows
nothing about where examples come from, who owns a session, or what happens to the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from adapters.config import InnerRule, SpecError
from adapters.layer import LoraHooks, Rows, rows_of
from adapters.objective import IGNORE, demonstration_loss, divergence
from adapters.prefix import Prefix, continue_from, empty_prefix, pad
from adapters.state import Tensors


@dataclass(frozen=True)
class Example:
    """One demonstration in tokens: the prompt, and the tokens from the activation point on."""

    prompt: tuple[int, ...]  # computed by the base alone
    header: tuple[int, ...]  # first tokens the adapter acts on; at least one
    completion: tuple[int, ...]  # taught tokens, the end token included


@dataclass(frozen=True)
class Turns:
    """Turns in tokens, B rows, all going on from ``prefix``.

    ``ids``: (B, T) tokens after the prefix, right-padded.
    ``targets``: (B, T) the next token at each position, ``IGNORE`` where it is not taught.
    ``active``: (B, T) where an adapter acts, or None for everywhere.
    """

    prefix: Prefix
    ids: Tensor
    targets: Tensor
    active: Tensor | None = None

    def rows(self, rows: slice) -> Turns:
        """The turns at ``rows``, in the same memory."""
        active = None if self.active is None else self.active[rows]
        return Turns(self.prefix.rows(rows), self.ids[rows], self.targets[rows], active)

    def select(self, rows: Tensor) -> Turns:
        """The turns at ``rows`` (B',), repeats allowed."""
        active = None if self.active is None else self.active.index_select(0, rows)
        return Turns(
            self.prefix.select(rows),
            self.ids.index_select(0, rows),
            self.targets.index_select(0, rows),
            active,
        )


@dataclass(frozen=True)
class Anchors:
    """Unrelated turns and the untaught model's log-probabilities, ``reference`` (A, T, V)."""

    turns: Turns
    reference: Tensor


@dataclass(frozen=True)
class Support:
    """What S sessions learn from.

    ``sessions``: (B,) the session each turn belongs to, 0..S-1; sessions may differ in examples.
    ``example_counts``: (S,) examples of each session, where these turns are only a part of them.
    """

    turns: Turns
    sessions: Tensor
    count: int  # S
    anchors: Anchors | None = None
    example_counts: Tensor | None = None

    @property
    def examples(self) -> Tensor:
        """(S,) number of examples of each session."""
        if self.example_counts is not None:
            return self.example_counts
        return torch.bincount(self.sessions, minlength=self.count).clamp(min=1)

    @property
    def weights(self) -> Tensor:
        """(B,) one over the number of examples of the row's session."""
        return 1.0 / self.examples[self.sessions]

    def parts(self, tokens: Callable[[], int]) -> Iterator[Support]:
        """The same in parts whose losses, and gradients, add up to the whole's.

        Args:
            tokens: asked before each part for the most padded tokens it may have, prompts not
                counted; one row is always taken, and the anchors, if any, all at once.
        """
        rows, width = self.turns.ids.shape
        begin = 0
        while begin < rows:
            end = min(rows, begin + max(1, tokens() // width))
            part = slice(begin, end)
            yield Support(
                self.turns.rows(part), self.sessions[part], self.count, None, self.examples
            )
            begin = end
        if self.anchors is not None:
            nothing = slice(0, 0)
            yield replace(self, turns=self.turns.rows(nothing), sessions=self.sessions[nothing])


@dataclass(frozen=True)
class StepReport:
    """What one inner step saw, before it moved: losses and gradient norms, (S,) each."""

    losses: Tensor
    gradient_norms: Tensor


def make_turns(
    examples: Sequence[Example], prefix: Prefix | None, scope: str, device: torch.device
) -> Turns:
    """Lay examples out as rows.

    Args:
        examples: B demonstrations.
        prefix: their prompts as the base prefilled them, B rows; not used in scope ``full``,
            where the adapter acts on the prompt too and the prompt is part of the rows.

    Raises:
        SpecError: an example has no header, or scope ``activated`` got no prefix.
    """
    if scope == "full":
        heads = [example.prompt + example.header for example in examples]
        prefix = empty_prefix(len(examples), device)
    else:
        heads = [example.header for example in examples]
    if prefix is None:
        raise SpecError("scope 'activated' needs the prefilled prompts")
    if not all(heads):
        raise SpecError("every example needs at least one token before its completion")
    ids, targets = [], []
    for head, example in zip(heads, examples, strict=True):
        ids.append((head + example.completion)[:-1])
        targets.append([IGNORE] * (len(head) - 1) + list(example.completion))
    return Turns(prefix, pad(ids, 0, device), pad(targets, IGNORE, device))


def support_losses(
    model: nn.Module,
    hooks: LoraHooks,
    tensors: Mapping[str, Tensor],
    support: Support,
    anchor_weight: Tensor | float,
) -> Tensor:
    """Each session's loss, (S,): mean over its examples, plus the weighted mean over anchors."""
    losses = torch.zeros(support.count, device=support.sessions.device)
    if len(support.sessions):
        with hooks.use(rows_of(tensors, support.sessions, support.turns.active)):
            logits = continue_from(model, support.turns.prefix, support.turns.ids)
        row_losses = demonstration_loss(logits, support.turns.targets) * support.weights
        losses = losses.to(row_losses.dtype).index_add(0, support.sessions, row_losses)
    if support.anchors is None:
        return losses
    return losses + anchor_weight * _anchor_losses(model, hooks, tensors, support)


def _anchor_losses(
    model: nn.Module, hooks: LoraHooks, tensors: Mapping[str, Tensor], support: Support
) -> Tensor:
    anchors = support.anchors
    assert anchors is not None
    count, device = anchors.turns.ids.shape[0], anchors.turns.ids.device
    every = torch.arange(count, device=device).repeat(support.count)  # (S * A,)
    turns = anchors.turns.select(every)
    with hooks.use(Rows(tensors, None, turns.active)):
        logits = continue_from(model, turns.prefix, turns.ids)
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
    """One gradient step of every session on its own feedback.

    A session's gradient is scaled down to norm ``clip`` where it is longer, then every tensor
    moves by its own step size (MAML, Finn et al. 2017, arXiv 1703.03400, eq. 1; per-tensor sizes:
    MAML++, arXiv 1810.09502). The batch sums over sessions, so no session sees another.

    Args:
        tensors: stacked adapters, first axis S.
        sizes: step size of every tensor, scalars.
        differentiable: keep the graph, so that the result can be differentiated with respect to
            the base, the adapters and the sizes.
        second_order: differentiate through the gradients too (exact MAML); without it they count
            as constants (first-order MAML).

    Returns:
        The moved adapters and what the step saw.
    """
    losses, gradients = support_gradients(
        model, hooks, tensors, support, anchor_weight, differentiable, second_order
    )
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
    differentiable: bool = False,
    second_order: bool = True,
) -> tuple[Tensor, Tensors]:
    """The first half of an inner step: each session's loss, (S,), and its gradient, S first.

    Those of a support's parts add up to those of the whole. Arguments as of ``inner_step``.
    """
    with torch.enable_grad():
        if not differentiable:
            tensors = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
        losses = support_losses(model, hooks, tensors, support, anchor_weight)
        gradients = torch.autograd.grad(
            losses.sum(),
            list(tensors.values()),
            create_graph=differentiable and second_order,
            retain_graph=differentiable,
        )
    if not differentiable:
        losses = losses.detach()
    return losses, dict(zip(tensors, gradients, strict=True))


def move(
    tensors: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    sizes: Mapping[str, Tensor],
    clip: float,
) -> tuple[Tensors, Tensor]:
    """The second half: the moved adapters, and the gradients' norms, (S,), before the clip."""
    squares = torch.stack([g.pow(2).flatten(1).sum(1) for g in gradients.values()]).sum(0)
    norms = (squares + 1e-12).sqrt()
    factors = (clip / norms).clamp(max=1.0)
    moved = {
        name: tensor - sizes[name] * _per_session(factors, tensor) * gradients[name]
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
