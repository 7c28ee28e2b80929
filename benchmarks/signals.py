"""What a guard could look at before it accepts a candidate, beside what ours looks at.

Knows a model of its own, adapters and examples; nothing about engines or answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adapters.artifact import Artifact
from adapters.layer import rows_of
from adapters.objective import demonstration_loss, divergence
from adapters.prefix import continue_from, prefill
from adapters.state import Tensors, stack
from adapters.support import Example, Turns, make_turns
from server.engine.base import make_base


class Signals:
    """Losses and divergences under adapters that act everywhere, gate or not."""

    def __init__(self, artifact: Artifact) -> None:
        """Run the artifact's model, which nobody else may run from here on."""
        self._base = make_base(artifact)

    def loss(self, examples: Sequence[Example], tensors: Tensors | None) -> float:
        """Mean cross-entropy of the examples' completions, nats a token; None is the base."""
        logits, turns = self._run(examples, tensors)
        return float(demonstration_loss(logits, turns.targets).mean())

    def divergence(self, examples: Sequence[Example], tensors: Tensors) -> float:
        """Mean KL from the base over the examples' completions, nats a token."""
        reference, turns = self._run(examples, None)
        logits, _ = self._run(examples, tensors)
        return float(divergence(logits, reference.log_softmax(-1), turns.targets).mean())

    @torch.no_grad()
    def _run(self, examples: Sequence[Example], tensors: Tensors | None) -> tuple[Tensor, Turns]:
        base = self._base
        with base.hooks.use(None):
            prefix = prefill(base.model, [example.prompt for example in examples], base.device)
        turns = make_turns(examples, prefix, base.spec.scope, base.device)
        rows = None
        if tensors is not None:
            one = torch.zeros(len(examples), dtype=torch.long, device=base.device)
            rows = rows_of(stack([tensors]), one, turns.active)
        with base.hooks.use(rows):
            return continue_from(base.model, turns.prefix, turns.ids).float(), turns
