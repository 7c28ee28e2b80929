"""How far an adapter moved each module: the size of what it adds to a weight, without making it.

Torch only; it knows tensors by their names and nothing of models.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def update_norms(
    adapter: Mapping[str, Tensor], start: Mapping[str, Tensor], scale: float
) -> dict[str, float]:
    """Frobenius norm of ``scale`` (B A - B0 A0) of each module, in the order of ``adapter``.

    ``adapter`` and ``start`` hold ``<module>.lora_A`` (R, in) and ``<module>.lora_B`` (out, R). The
    difference (out, in) is [B, -B0] [A; A0], a product of rank 2R, so its norm comes from two
    matrices (2R, 2R): the trace of their product. In float64, because that sum cancels.
    """
    modules = [name.removesuffix(".lora_A") for name in adapter if name.endswith(".lora_A")]
    return {module: scale * _norm(adapter, start, module) for module in modules}


def update_norm(adapter: Mapping[str, Tensor], start: Mapping[str, Tensor], scale: float) -> float:
    """The Frobenius norm over all modules together."""
    return math.hypot(*update_norms(adapter, start, scale).values())


def _norm(adapter: Mapping[str, Tensor], start: Mapping[str, Tensor], module: str) -> float:
    a, b = f"{module}.lora_A", f"{module}.lora_B"
    down = torch.cat([adapter[a].double(), start[a].double()])  # (2R, in)
    up = torch.cat([adapter[b].double(), -start[b].double()], dim=1)  # (out, 2R)
    squared = ((up.T @ up) * (down @ down.T)).sum()  # (2R, 2R) each
    return float(squared.clamp_min(0).sqrt())
