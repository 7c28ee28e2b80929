"""Reptile: move the start towards where the inner steps led.

Nichol, Achiam, Schulman 2018, "On First-Order Meta-Learning Algorithms", arXiv 1803.02999,
algorithm 2: phi <- phi + epsilon * mean(phi~_i - phi), where phi - phi~ may be handed to Adam as a
gradient (section 3). Minibatches of a task differ from step to step (section 5): support and
queries take turns, so the queries' figures are of what was learned from. Only what the inner loop
moves has such a difference: step sizes stay as they are, and the base learns from what is trained
beside the inner loop alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.inner_loop import descend
from adapters.state import Tensors
from meta_training.algorithms.episodes import Cut, Episodes, Judged


@dataclass(frozen=True)
class Reptile:
    """The difference between start and adapted tensors as the start's gradient."""

    takes_steps: bool = True

    def backward(
        self, episodes: Episodes, steps: int, progress: float, aside: Tensor | None = None
    ) -> Judged:
        """As of ``Algorithm``."""
        rule = episodes.rule
        tensors: Tensors = dict(episodes.start)
        for step in range(steps):
            losses = episodes.query_losses if step % 2 else episodes.support_losses
            sizes = {name: size.detach() for name, size in rule.sizes_at(step).items()}
            tensors, _ = descend(losses, tensors, sizes, rule.clip)
        gradients = {
            name: (start.detach() - tensors[name].detach()) / start.shape[0]
            for name, start in episodes.start.items()
        }
        Cut().backward(episodes.start, gradients, aside)
        with torch.no_grad():
            return episodes.judge(tensors)
