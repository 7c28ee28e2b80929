"""Which earlier tokens a token may see, where layers of one model look back differently far.

Knows transformers' names for kinds of layers and the form its models take masks in; knows nothing
about caches.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedConfig

SLIDING = "sliding_attention"
Masks = Tensor | dict[str, Tensor]
Windows = int | None | Mapping[str, int | None]


def attention_windows(config: PreTrainedConfig) -> Windows:
    """How many tokens back a token sees, itself included: None is all of them.

    One answer for all layers, or one for each kind of layer the model has, as
    transformers' ``create_masks_for_generate`` tells them apart.
    """
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    kinds = set(getattr(text, "layer_types", None) or ())
    if not kinds or kinds == {SLIDING}:
        return window
    if SLIDING not in kinds:
        return None
    return {kind: window if kind == SLIDING else None for kind in kinds}


def additive_masks(windows: Windows, allowed: Tensor, back: Tensor, dtype: torch.dtype) -> Masks:
    """What a model takes as ``attention_mask``, (B, 1, T, W), or one of them by kind of layer.

    Args:
        allowed: (B, T, W) tokens that each of T tokens may see, were the window endless.
        back: (B, T, W) how many places before it they are.
    """
    if not isinstance(windows, Mapping):
        return _additive(windows, allowed, back, dtype)
    return {kind: _additive(window, allowed, back, dtype) for kind, window in windows.items()}


def _additive(window: int | None, allowed: Tensor, back: Tensor, dtype: torch.dtype) -> Tensor:
    if window is not None:
        allowed = allowed & (back < window)
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min).unsqueeze(1)
