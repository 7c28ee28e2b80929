"""What every learner learns beside its base: the tensors sessions start from, and their step sizes.

Knows tensors and the form of an inner rule; nothing about models or episodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adapters.config import Anchor, Gate, InnerRule
from adapters.state import Tensors
from meta_training.algorithms.anil import still_tensors
from meta_training.algorithms.meta_sgd import log_factors
from meta_training.recipe_parts import InnerPart


class Starting(nn.Module):
    """A module with a start and an inner rule among its parameters, all where its base is."""

    model: nn.Module  # the base; set before ``begin``
    part: InnerPart
    names: list[str]  # of the start's tensors
    moving: list[str]  # those that inner steps change
    adapter: nn.ParameterList
    log_sizes: nn.Parameter  # (moving tensors, K)
    log_factors: nn.ParameterList  # of the moving tensors' shapes; empty: one size for all elements

    @property
    def device(self) -> torch.device:
        """Where everything is that is computed with."""
        return next(self.model.parameters()).device

    def begin(self, start: Tensors, part: InnerPart, still: frozenset[str] | None = None) -> None:
        """Register parameters that start at ``start`` with one step size for all tensors.

        ``still``: tensors that do not move, where it is not ``part.top_layers`` that says so.
        """
        self.part = part
        start = {name: tensor.to(self.device) for name, tensor in start.items()}
        self.names = list(start)
        if still is None:
            layers = part.top_layers
            still = frozenset() if layers is None else still_tensors(start, layers)
        self.moving = [name for name in self.names if name not in still]
        self.adapter = nn.ParameterList([nn.Parameter(start[name]) for name in self.names])
        shape = (len(self.moving), part.steps)
        first = torch.full(shape, part.first_step_size, device=self.device)
        self.log_sizes = nn.Parameter(first.log())
        factors = log_factors(start, self.moving) if part.sizes == "element" else []
        self.log_factors = nn.ParameterList([nn.Parameter(factor) for factor in factors])

    def tensors(self) -> Tensors:
        """The current start."""
        return dict(zip(self.names, self.adapter, strict=True))

    def inner_rule(
        self,
        anchor_weight: Tensor | float = 0.0,
        anchors: Sequence[Anchor] = (),
        gate: Gate | None = None,
    ) -> InnerRule:
        """The current rule; differentiable with respect to what is learned of it."""
        factors = None
        if len(self.log_factors):
            logs = zip(self.moving, self.log_factors, strict=True)
            factors = {name: log.exp() for name, log in logs}
        return InnerRule(
            self.part.steps,
            dict(zip(self.moving, self.log_sizes.exp(), strict=True)),
            self.part.clip,
            anchor_weight,
            tuple(anchors),
            gate,
            factors,
            frozenset(self.names) - set(self.moving),
        )

    def take_sizes(self, rule: InnerRule) -> None:
        """Go on from the sizes of ``rule``, which is of the same form."""
        with torch.no_grad():
            self.log_sizes.copy_(torch.stack([rule.step_sizes[name] for name in self.moving]).log())
            if rule.factors is not None:
                for log, name in zip(self.log_factors, self.moving, strict=True):
                    log.copy_(rule.factors[name].log())
