"""The outer loop of a classifier: any learner, any algorithm, episodes from anywhere.

Knows learners and algorithms; nothing about texts. What `train` is for causal LMs, without its
pools, text rows and checkpoints.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor

from adapters.inner_loop import descend
from adapters.state import Tensors
from meta_training.algorithms.choice import choose
from meta_training.algorithms.episodes import Judged
from meta_training.classifier import Classifier, Labelled, lay_out_classes
from meta_training.pretrain import cosine
from meta_training.recipe import OuterPart

Draw = Callable[[random.Random], tuple[Labelled, Labelled]]


def train_classifier(
    learner: Classifier, draw: Draw, part: OuterPart, seed: int = 0
) -> list[dict[str, float]]:
    """Take ``part.steps`` outer steps on batches of ``draw``.

    Of ``part`` count algorithm and its options, steps, learning rates, warm-up, clip, and whether
    the base is frozen. In a base that is LoRA's (``add_base_lora``) the rest is frozen already.

    Returns:
        The figures of every outer step.
    """
    if part.base == "frozen":
        learner.model.requires_grad_(False)
    algorithm, rng = choose(part), random.Random(seed)
    base = [p for p in learner.base_parameters() if p.requires_grad]
    groups = [
        (base, part.base_learning_rate),
        (list(learner.adapter), part.adapter_learning_rate),
        ([learner.log_sizes, *learner.log_factors], part.step_size_learning_rate),
    ]
    optimizer = torch.optim.AdamW(
        [{"params": own, "lr": rate} for own, rate in groups if own], weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: cosine(step, part.steps, part.warmup_steps)
    )
    learned = [parameter for own, _ in groups for parameter in own]
    found = []
    for step in range(part.steps):
        episodes = lay_out_classes(learner, *draw(rng))
        optimizer.zero_grad()
        judged = algorithm.backward(episodes, learner.part.steps, step / part.steps)
        norm = torch.nn.utils.clip_grad_norm_(learned, part.clip)
        if math.isfinite(float(norm)):
            optimizer.step()
        schedule.step()
        found.append(dict(judged.figures))
    return found


def adapt_classifier(
    learner: Classifier, support: Labelled, query: Labelled, steps: int
) -> tuple[Tensors, Judged]:
    """The adapted tensors of each episode, stacked, and how they do on the queries."""
    episodes = lay_out_classes(learner, support, query)
    tensors: Tensors = {name: tensor.detach() for name, tensor in episodes.start.items()}
    rule = learner.inner_rule()
    for step in range(steps):
        sizes = {name: size.detach() for name, size in rule.sizes_at(step).items()}
        tensors, _ = descend(episodes.support_losses, tensors, sizes, rule.clip)
    with torch.no_grad():
        return tensors, episodes.judge(tensors)


def classify(learner: Classifier, tensors: Tensors, rows: Labelled) -> Tensor:
    """(B,) the class of each input, by its episode's adapted tensors."""
    with torch.no_grad():
        return learner.logits(tensors, rows).argmax(-1)
