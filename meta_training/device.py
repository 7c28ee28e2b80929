"""What training has to know of the device that it runs on, beside its name.

Everything that is learned lies on one device, where the base is; what is drawn (texts, batches, an
adapter's start) is drawn on the CPU, so that a seed means the same everywhere. The gate's vectors
and choices are the CPU's, as in serving. Knows devices and trees of tensors; nothing about stages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from adapters.device import pick_device


def use_device(name: str) -> torch.device:
    """The device of a name, which becomes the current one where it is a GPU with a number.

    Raises:
        DeviceError: a GPU that PyTorch does not see.
    """
    device = pick_device(name)
    if device.index is not None:  # without one it is the current GPU as it is
        torch.cuda.set_device(device)
    return device


def bfloat16_products(device: torch.device) -> torch.autocast:
    """Inside, products are in bfloat16 where oneDNN or CUDA says that the device has them.

    Elsewhere they stay in float32, which is seven times as fast there.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=_multiplies_bfloat16(device))


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.backends.mkldnn.is_available() and bool(
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def on_cpu(tree: Any) -> Any:
    """The same dicts, lists and tuples with every tensor on the CPU; those that are there stay."""
    match tree:
        case Tensor():
            return tree.detach().cpu()
        case dict():
            return {key: on_cpu(value) for key, value in tree.items()}
        case list() | tuple():
            return type(tree)(on_cpu(value) for value in tree)
    return tree


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Let a module of any kind be differentiated on a GPU, as often as exact MAML does.

    cuDNN's recurrent layers have no second derivative, and in eval mode not even a first one.
    """
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def gpu_random() -> Tensor | None:
    """Where the current GPU's random generator stands; None where no GPU is in use."""
    return torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None


def set_gpu_random(state: Tensor | None) -> None:
    """Go on from there where a GPU is in use; a run that goes on elsewhere has no use for it."""
    if state is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state)
