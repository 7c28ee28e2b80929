"""Last stage: a learner becomes the artifact folder a server loads.

Knows learners and the artifact's form; knows nothing about training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from adapters.artifact import Artifact, save_artifact
from adapters.config import InnerRule
from meta_training.learner import Learner


def export(learner: Learner, folder: Path, report: Mapping[str, Any]) -> Artifact:
    """Write the artifact, base in 16 bit, and load it back.

    Raises:
        ArtifactError: ``folder`` holds something else.
    """
    rule = learner.rule()
    frozen = InnerRule(
        steps=rule.steps,
        step_sizes={name: sizes.detach().clone() for name, sizes in rule.step_sizes.items()},
        clip=rule.clip,
        anchor_weight=float(torch.as_tensor(rule.anchor_weight).detach()),
        anchors=rule.anchors,
        gate=rule.gate,
        factors=rule.factors
        and {name: factor.detach().clone() for name, factor in rule.factors.items()},
        still=rule.still,
    )
    tensors = {name: tensor.detach().clone() for name, tensor in learner.tensors().items()}
    header = learner.encoder.assistant_header()
    return save_artifact(
        folder,
        learner.model,
        learner.encoder.tokenizer,
        learner.spec,
        tensors,
        frozen,
        report,
        header,
    )
