"""Trains an encoder for a metric: the outer loss is the metric's, the inner loop is nothing.

Knows metrics and episodes; nothing about what embeds them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from meta_training.algorithms.episodes import Episodes, Judged, add_aside
from meta_training.algorithms.metric import Metric


@dataclass(frozen=True)
class MetricTraining:
    """The mean of a metric's loss over the episodes."""

    metric: Metric
    takes_steps: bool = False

    def backward(
        self, episodes: Episodes, steps: int, progress: float, aside: Tensor | None = None
    ) -> Judged:
        """As of ``Algorithm``."""
        losses, right = [], []
        for one in episodes.embedded():
            losses.append(self.metric.loss(one.support, one.labels, one.queries, one.answers))
            with torch.no_grad():
                best = self.metric.scores(one.support, one.labels, one.queries).argmax(-1)
            right.append((best == one.answers).float().mean())
        loss = torch.stack(losses).mean()
        add_aside(loss, aside).backward()
        return Judged(loss, {"query": loss.item(), "exact": float(torch.stack(right).mean())})
