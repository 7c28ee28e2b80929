"""ANIL: almost no inner loop. Only the adapters of the top layers move; the rest is shared.

Raghu et al. 2020, "Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of
MAML", arXiv 1909.09157, section 5 and eq. 3, where it is the head alone. So it is MAML over an
inner rule in which the other tensors are `InnerRule.still`. A language model's head is its
vocabulary; here it is the adapters in the last layers that move. The lower ones stay at
session_init, which the outer loop learns; an inner step's backward pass ends where the moving ones
begin.
"""

from __future__ import annotations

from collections.abc import Iterable


def still_tensors(names: Iterable[str], top_layers: int) -> frozenset[str]:
    """Those of ``names`` that lie below the ``top_layers`` last layers.

    A tensor's layer is the first number in its name, as in ``model.layers.3.mlp.up_proj.lora_A``;
    what has none (a classifier's head) is above all layers.
    """
    layers = {name: layer_of(name) for name in names}
    counted = sorted({layer for layer in layers.values() if layer is not None})
    top = set(counted[-top_layers:])
    return frozenset(
        name for name, layer in layers.items() if layer is not None and layer not in top
    )


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor or module is in; None where it is in none."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)
