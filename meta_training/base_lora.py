"""A LoRA of the base's own, for outer loops over bases too large to learn as a whole.

Every target's weight is read as W + B A, by torch's parametrizations, so that nothing else has to
know; W stays as it is, and in the end the product is merged into it. A session's adapter comes on
top. Knows modules; nothing about sessions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from adapters.state import target_modules


class LowRank(nn.Module):
    """W -> W + B A (Hu et al. 2021, arXiv 2106.09685, eq. 3, scale 1); it starts as W."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        """A ~ N(0, 1/in), B = 0."""
        super().__init__()
        rows, columns = weight.shape
        start = torch.randn(rank, columns, generator=generator) / columns**0.5
        self.lora_a = nn.Parameter(start.to(weight))
        self.lora_b = nn.Parameter(torch.zeros(rows, rank).to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the module computes with."""
        return weight + self.lora_b @ self.lora_a


def add_base_lora(model: nn.Module, targets: Sequence[str], rank: int, seed: int) -> None:
    """Freeze ``model`` and let a LoRA of ``rank`` on the modules ``targets`` learn in its place.

    Raises:
        SpecError: a target matches no usable module.
    """
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for module in target_modules(model, targets).values():
        weight = module.weight
        assert isinstance(weight, Tensor)
        parametrize.register_parametrization(module, "weight", LowRank(weight, rank, generator))


def merge_base(model: nn.Module) -> None:
    """Write what ``add_base_lora`` added into the weights themselves, where it was called."""
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
