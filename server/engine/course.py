"""What all derivations of an engine share, made once at its start.

Knows the artifact's rule and the model; knows nothing about jobs or steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from adapters.artifact import Artifact
from adapters.chat import user_turn
from adapters.config import InnerRule
from adapters.lower import LowerLayers, lower_layers
from adapters.prefix import prefill
from adapters.state import Tensors
from adapters.support import Anchors, make_turns
from server.engine.base import Base


@dataclass(frozen=True)
class Course:
    """What every derivation shares: its start, the rule, and the anchors' untaught answers.

    ``lower``: the layers of the model whose adapters the rule leaves as they are.
    """

    session_init: Tensors
    rule: InnerRule
    anchors: Anchors | None
    lower: LowerLayers

    @property
    def anchor_tokens(self) -> int:
        """Padded tokens that the anchors add to a step for every session, prompts included."""
        if self.anchors is None:
            return 0
        rows, tokens = self.anchors.turns.ids.shape
        return rows * (tokens + self.anchors.turns.prefix.width)


@torch.no_grad()
def make_course(base: Base, artifact: Artifact) -> Course:
    """Compute once what the untaught model says to the rule's anchors."""
    device, rule = base.device, artifact.rule
    sizes = {name: values.to(device) for name, values in rule.step_sizes.items()}
    factors = rule.factors and {name: values.to(device) for name, values in rule.factors.items()}
    init = {name: tensor.to(device) for name, tensor in artifact.session_init.items()}
    anchors = None
    if rule.anchors:
        examples = [
            base.encoder.example(user_turn(anchor.prompt), anchor.completion)
            for anchor in rule.anchors
        ]
        with base.hooks.use(None):
            prefix = prefill(base.model, [example.prompt for example in examples], device)
            turns = make_turns(examples, prefix, base.spec.scope, device)
            logits = turns.logits(base.model)
        anchors = Anchors(turns, logits.float().log_softmax(-1))
    lower = lower_layers(base.model, rule.step_sizes, device)
    return Course(init, replace(rule, step_sizes=sizes, factors=factors), anchors, lower)
