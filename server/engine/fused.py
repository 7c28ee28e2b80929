"""Which parts of a decode step our own operations compute, and how a model is brought to call them.

Knows transformers' way to choose an attention; knows nothing about rows, caches or compilers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from adapters.layer import AddLora
from server.engine.base import Base
from server.engine.kernels import load_kernels
from server.engine.kv import Store

_REPLACED: Final = "sdpa"  # the one kind of attention that ours computes the same as
_ATTENTION: Final = "innerloop_decode"


@dataclass(frozen=True)
class Fused:
    """Operations that each do what takes PyTorch several."""

    add: AddLora
    store: Store


def fused_operations(base: Base) -> Fused | None:
    """Ours, for models that compute float32 on a CPU; None where PyTorch's are used."""
    if base.device.type != "cpu" or base.dtype is not torch.float32 or not load_kernels():
        return None
    return Fused(torch.ops.innerloop.add_lora, torch.ops.innerloop.store)


@contextmanager
def attending(base: Base) -> Iterator[None]:
    """Let the model's passes inside the block attend by ours, where it would by PyTorch's."""
    config = base.model.config.get_text_config()
    before = config._attn_implementation
    if before != _REPLACED:
        yield
        return
    AttentionInterface.register(_ATTENTION, _attend)
    config._attn_implementation = _ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """As transformers' attentions: (B, H, 1, D) and (B, G, W, D) to (B, 1, H, E)."""
    if attention_mask is None or options.get("position_bias") is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return torch.ops.innerloop.attend(query, key, value, attention_mask, scale), None
