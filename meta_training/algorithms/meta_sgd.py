"""Meta-SGD: a learned step size for every element of the adapter.

Li et al. 2017, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", arXiv 1707.09835, eq. 1
and algorithm 1: theta' = theta - alpha * gradient, element by element, alpha learned by MAML's
exact gradient. So it is MAML over an inner rule with element-wise sizes, which `InnerRule.factors`
are. Two departures: alpha is the product of a size per tensor and step, which MAML++'s rule has,
and a factor per element, which all steps share (the paper takes one step); and it is learned as a
logarithm, so that it cannot change its sign.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor


def log_factors(tensors: Mapping[str, Tensor], moving: Collection[str]) -> list[Tensor]:
    """Logarithms of the factors to start from, all of them 1, in the order of ``moving``."""
    return [torch.zeros_like(tensors[name]) for name in moving]
