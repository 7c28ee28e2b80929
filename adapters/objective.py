"""From a model's logits and feedback to a loss per row.

Knows tensors only; nothing about sessions, adapters or how the logits came about.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, softplus

IGNORE: Final = -100  # target of a position that teaches nothing
BETA: Final = 0.1  # how far preferences and ratings may move a completion: DPO's, and its value
RATING_WEIGHT: Final = 0.5  # of all of a session's ratings, where corrections weigh 1


class Role(IntEnum):
    """What a row of tokens is in what a session learns from."""

    TAUGHT = 0  # a demonstration or a correction: to be said
    CHOSEN = 1  # of a preference; the row after it is what it was preferred to
    REJECTED = 2
    LIKED = 3  # of a rating alone
    DISLIKED = 4


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


def feedback_loss(
    logits: Tensor, targets: Tensor, roles: Sequence[Role], reference: Tensor
) -> Tensor:
    """What each row costs in its role.

    A demonstration costs its cross-entropy. A preference costs the cross-entropy of what was chosen
    plus DPO's loss on the pair (Rafailov et al. 2023, arXiv 2305.18290, eq. 7; the sum: Pang et al.
    2024, arXiv 2404.19733, eq. 1): DPO alone lowers both. A rating costs its half of APO-zero
    (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 5), which is bounded: between 0 and 1.

    Args:
        logits: (B, T, V).
        targets: (B, T), as of ``demonstration_loss``.
        roles: B of them; the row after a chosen one is what it was preferred to.
        reference: (B,) log-probability of each completion under the untaught model.

    Returns:
        (B,); a rejected row is in the loss of the chosen one, and has 0.
    """
    means = demonstration_loss(logits, targets)
    margins = BETA * (-means * _counts(targets) - reference)
    rivals = margins.roll(-1)
    role = torch.tensor(roles, device=means.device)
    losses = torch.where(role == Role.CHOSEN, means + softplus(rivals - margins), means)
    losses = torch.where(role == Role.REJECTED, 0.0, losses)
    losses = torch.where(role == Role.LIKED, torch.sigmoid(-margins), losses)
    return torch.where(role == Role.DISLIKED, torch.sigmoid(margins), losses)


def completion_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """(B,) log-probability of each row's completion, the end token included, in nats."""
    return -demonstration_loss(logits, targets) * _counts(targets)


def row_weights(roles: Sequence[Role], sessions: Tensor, count: int) -> Tensor:
    """(B,) the weight of each row in the loss of its session, of which there are ``count``.

    Everything but ratings weighs equally, and 1 together. Ratings weigh at most ``RATING_WEIGHT``
    together, however many they are, and take nothing away from the rest.
    """
    role = torch.tensor(roles, device=sessions.device)
    rated = (role == Role.LIKED) | (role == Role.DISLIKED)

    def counted(rows: Tensor) -> Tensor:
        found = torch.zeros(count, device=sessions.device)
        return found.index_add(0, sessions, rows.float())[sessions]  # (B,)

    firm = counted(~rated & (role != Role.REJECTED))
    loose = counted(rated)
    return torch.where(rated, RATING_WEIGHT / torch.maximum(firm, loose).clamp(min=1), 1 / firm)


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
