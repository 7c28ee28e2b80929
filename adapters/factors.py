"""`step_factors.safetensors`: element-wise factors on an inner rule's step sizes, beside the rule.

Knows the file's form; knows nothing about models or about who learned the factors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from adapters.config import AdapterError
from adapters.tensor_file import TensorFileError, read_tensor_file


class FactorsError(AdapterError, ValueError):
    """Step factors cannot be read; the message says why."""


def digest(factors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values, in hexadecimal."""
    found = hashlib.sha256()
    for name, tensor in sorted(factors.items()):
        values = tensor.detach().float().cpu().contiguous()
        found.update(f"{name} {tuple(values.shape)}\n".encode())
        found.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def save_factors(path: Path, factors: Mapping[str, Tensor]) -> None:
    """Write the factors in float32."""
    whole = {name: tensor.detach().float().cpu().contiguous() for name, tensor in factors.items()}
    save_file(whole, path)


def load_factors(path: Path) -> dict[str, Tensor]:
    """Read factors; whose they are, the rule and the adapter say.

    Raises:
        FactorsError: unreadable, broken, not float32, negative or not finite.
    """
    try:
        file = read_tensor_file(path.read_bytes())
        file.check({name: tuple(entry["shape"]) for name, entry in file.entries.items()}, ("F32",))
        tensors = file.tensors()
    except OSError as error:
        raise FactorsError(f"cannot be read: {error}") from error
    except TensorFileError as error:
        raise FactorsError(f"no usable step factors: {error}") from error
    for name, tensor in tensors.items():
        if bool((tensor < 0).any()):
            raise FactorsError(f"no usable step factors: {name} has a negative one")
    return tensors
