"""Batches weighed by how far their gradients agree with the others'.

Eshratifar et al. 2018, "Gradient Agreement as an Optimization Objective for Meta-Learning", arXiv
1810.08178, eq. 6: a task whose gradient points away from the mean counts less, or against. Knows
gradients only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def agreement(gradients: Tensor) -> Tensor:
    """(B,) weights of B gradients (B, N): w_b = g_b . g / sum_k |g_k . g|, where g is their mean.

    All alike where no gradient has anything to do with the mean.
    """
    products = gradients @ gradients.mean(0)
    whole = products.abs().sum()
    if not whole > 0:
        return torch.full_like(products, 1 / len(products))
    return products / whole


def take_gradient(parameters: Sequence[nn.Parameter]) -> Tensor:
    """(N,) the gradients of ``parameters`` in a row, 0 where there is none; they are cleared."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return torch.cat([part.flatten() for part in parts])


def give_gradient(parameters: Sequence[nn.Parameter], flat: Tensor) -> None:
    """Put (N,) ``flat`` back as the gradients of ``parameters``."""
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, part in zip(parameters, flat.split(sizes), strict=True):
        parameter.grad = part.view_as(parameter)
