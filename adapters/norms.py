"""How far an adapter changes the weights it acts on: the size of what it adds, without making it.

How far the adapter's own parameters moved, which is another number, `adapters.guard` measures.
Torch only; it knows tensors by their names and nothing of models.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def weight_changes(
    adapter: Mapping[str, Tensor], start: Mapping[str, Tensor], scale: float
) -> dict[str, float]:
    """Frobenius norm of ``scale`` (B A - B0 A0) of each module, in the order of ``adapter``.

    ``adapter`` and ``start`` hold ``<module>.lora_A`` (R, in) and ``<module>.lora_B`` (out, R). The
    difference (out, in) is [B, -B0] [A; A0], a product of rank 2R.
    """
    modules = [name.removesuffix(".lora_A") for name in adapter if name.endswith(".lora_A")]
    return {module: scale * _change(adapter, start, module) for module in modules}


def weight_change(
    adapter: Mapping[str, Tensor], start: Mapping[str, Tensor], scale: float
) -> float:
    """The Frobenius norm over all modules together."""
    return math.hypot(*weight_changes(adapter, start, scale).values())


def product_norm(up: Tensor, down: Tensor) -> float:
    """Frobenius norm of ``up`` (out, R) times ``down`` (R, in).

    It comes from two matrices (R, R): its square is the trace of their product. In float64, because
    that sum cancels.
    """
    up, down = up.double(), down.double()
    squared = ((up.T @ up) * (down @ down.T)).sum()
    return float(squared.clamp_min(0).sqrt())


def _change(adapter: Mapping[str, Tensor], start: Mapping[str, Tensor], module: str) -> float:
    a, b = f"{module}.lora_A", f"{module}.lora_B"
    down = torch.cat([adapter[a], start[a]])  # (2R, in)
    up = torch.cat([adapter[b], -start[b]], dim=1)  # (out, 2R)
    return product_norm(up, down)
