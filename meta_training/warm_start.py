"""Warm start: a new session begins from a mix of what known tasks led to, not from session_init.

The attention of Matching Networks (Vinyals et al. 2016, arXiv 1606.04080, eq. 1) over tasks instead
of examples: a session's first feedback is compared with the tasks' own, and their updates are added
to session_init by those weights. A measurement (`python -m benchmarks.warm_start`); nothing serves
it. Knows vectors and adapters; nothing about where tasks come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from adapters.state import Tensors
from meta_training.algorithms.metric import Matching


@dataclass(frozen=True)
class KnownTasks:
    """T tasks: what they are known by, (T, D), and where adapting led, stacked, T first."""

    keys: Tensor
    adapted: Tensors


def task_key(embeddings: Tensor) -> Tensor:
    """(D,) what a task is known by: the mean of its examples' unit vectors (N, D)."""
    return normalize(normalize(embeddings, dim=-1).mean(0), dim=0)


def warm_start(
    known: KnownTasks,
    session_init: Mapping[str, Tensor],
    keys: Tensor,
    nearest: int,
    sharpness: float = 10.0,
) -> Tensors:
    """Starts of S sessions, stacked.

    Args:
        keys: (S, D) of the sessions' first feedback.
        nearest: known tasks that have a say, at most T.
        sharpness: multiplies cosines; the larger, the more the nearest counts.
    """
    attention = Matching(sharpness).attention(known.keys, keys)  # (S, T)
    kept = attention.topk(nearest, dim=1)
    weights = torch.zeros_like(attention).scatter(1, kept.indices, kept.values)
    weights = weights / weights.sum(1, keepdim=True)
    return {
        name: start + torch.einsum("st,t...->s...", weights, known.adapted[name] - start)
        for name, start in session_init.items()
    }
