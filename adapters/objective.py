"""From a model's logits and feedback to a loss per row.

Knows tensors only; nothing about sessions, adapters or how the logits came about.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

IGNORE: Final = -100  # target of a position that teaches nothing


def demonstration_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of a row's completion tokens, the end token included, in nats.

    Args:
        logits: (B, T, V).
        targets: (B, T) next token at each position, ``IGNORE`` where it does not count.

    Returns:
        (B,); 0 for a row without targets.
    """
    losses = cross_entropy(
        _at_least_float32(logits).flatten(0, 1),
        targets.flatten(),
        ignore_index=IGNORE,
        reduction="none",
    ).view_as(targets)  # (B, T)
    return losses.sum(1) / _counts(targets)


def divergence(logits: Tensor, reference: Tensor, targets: Tensor) -> Tensor:
    """Mean KL(reference || logits) over a row's target positions, in nats per token.

    Args:
        logits: (B, T, V).
        reference: (B, T, V) log-probabilities of the model to stay close to.
        targets: (B, T); positions with ``IGNORE`` do not count.

    Returns:
        (B,).
    """
    log_probabilities = log_softmax(_at_least_float32(logits), dim=-1)
    per_token = (reference.exp() * (reference - log_probabilities)).sum(-1)  # (B, T)
    return torch.where(targets != IGNORE, per_token, per_token.new_zeros(())).sum(1) / _counts(
        targets
    )


def _counts(targets: Tensor) -> Tensor:
    return (targets != IGNORE).sum(1).clamp(min=1)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype.itemsize < 4 else logits
