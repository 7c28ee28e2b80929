"""What an algorithm sees of a batch of episodes, and what it gives back.

Knows tensors and inner rules; nothing about models, texts or optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from adapters.config import InnerRule
from adapters.state import Tensors


@dataclass(frozen=True)
class Judged:
    """What adapted tensors cost on the queries: a scalar with its graph, and figures to watch.

    ``rows``: what each query costs, where that is known; without a graph.
    """

    loss: Tensor
    figures: Mapping[str, float]
    rows: Tensor | None = None


@dataclass(frozen=True)
class Embedded:
    """One episode as an encoder sees it: N support rows, Q queries, width D, C classes.

    ``labels`` (N,) and ``answers`` (Q,) are of 0..C-1.
    """

    support: Tensor
    labels: Tensor
    queries: Tensor
    answers: Tensor


class Cut:
    """Leaves that stand for computed tensors, until the graph behind these is needed.

    What every inner step uses (a prompt's keys and values, step sizes) is computed once. Behind a
    leaf, its gradients add up, and its graph is walked through once for all of them.
    """

    def __init__(self) -> None:
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def leaf(self, tensor: Tensor) -> Tensor:
        """A leaf with the value of ``tensor``, or ``tensor`` itself where nothing is behind it."""
        if tensor.grad_fn is None:
            return tensor
        leaf = tensor.detach().requires_grad_()
        self._pairs.append((tensor, leaf))
        return leaf

    def rule(self, rule: InnerRule) -> InnerRule:
        """``rule`` with leaves for all that is learned of it."""
        weight, factors = rule.anchor_weight, rule.factors
        return replace(
            rule,
            step_sizes={name: self.leaf(sizes) for name, sizes in rule.step_sizes.items()},
            anchor_weight=self.leaf(weight) if isinstance(weight, Tensor) else weight,
            factors=factors and {name: self.leaf(factor) for name, factor in factors.items()},
        )

    def backward(
        self, start: Tensors, gradients: Mapping[str, Tensor], aside: Tensor | None
    ) -> None:
        """Walk through the graphs behind the leaves, ``start`` (by its gradients) and ``aside``."""
        known: list[tuple[Tensor, Tensor | None]] = [
            (tensor, leaf.grad) for tensor, leaf in self._pairs if leaf.grad is not None
        ]
        known += [(tensor, gradients[name]) for name, tensor in start.items()]
        known += [] if aside is None else [(aside, None)]
        known = [(tensor, gradient) for tensor, gradient in known if tensor.requires_grad]
        torch.autograd.backward([tensor for tensor, _ in known], [found for _, found in known])


class Episodes(Protocol):
    """A batch of S episodes of one learner, laid out once.

    ``start`` and ``rule`` carry the graph to what is learned. Nothing here changes anything.
    """

    @property
    def start(self) -> Tensors:
        """The tensors that the inner loop moves: S times the same, stacked."""
        ...

    @property
    def rule(self) -> InnerRule:
        """The inner rule."""
        ...

    def support_losses(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Each episode's inner loss, (S,): what a server would learn from."""
        ...

    def query_losses(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The same loss on the episode's queries, (S,)."""
        ...

    def judge(self, tensors: Mapping[str, Tensor] | None, support_too: bool = False) -> Judged:
        """The outer loss with each episode's ``tensors``; None switches adapters off.

        ``support_too``: the mean of queries and support instead of the queries alone.
        """
        ...

    def embedded(self) -> list[Embedded]:
        """Each of the S episodes with its embeddings, adapters off."""
        ...

    def cut(self, cut: Cut) -> Self:
        """The same with leaves for everything that was computed before the inner loop."""
        ...


class Algorithm(Protocol):
    """How a batch of episodes becomes gradients."""

    @property
    def takes_steps(self) -> bool:
        """Whether there is an inner loop; without one ``steps`` says nothing."""
        ...

    def backward(
        self, episodes: Episodes, steps: int, progress: float, aside: Tensor | None = None
    ) -> Judged:
        """Add the batch's gradients to ``.grad`` of everything it depends on.

        Args:
            steps: inner steps to take.
            progress: share of the outer steps that are done, 0 to 1; schedules go by it.
            aside: a scalar loss beside the inner loop, differentiated in the same pass.

        Returns:
            What the queries cost; its loss may have no graph any more.
        """
        ...


def add_aside(loss: Tensor, aside: Tensor | None) -> Tensor:
    """The sum to differentiate."""
    return loss if aside is None else loss + aside
