"""Safetensors bytes from outside, checked before a tensor is made of them.

Knows the file format and its limits; knows nothing about what the tensors mean. Never pickle.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from safetensors import SafetensorError, deserialize

from adapters.config import AdapterError
from adapters.state import Tensors

# A header takes about 120 bytes a tensor; this is room for adapters of models with 8,000 layers.
HEADER_LIMIT_BYTES: Final = 4 * 2**20
TYPES: Final = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
}


class TensorFileError(AdapterError, ValueError):
    """Bytes are no usable safetensors file; the message says where they differ from one."""


@dataclass(frozen=True)
class TensorFile:
    """A parsed file: its free metadata and, by tensor name, the stored type, shape and bytes."""

    metadata: Mapping[str, str]
    entries: Mapping[str, Mapping[str, Any]]

    def check(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        types: Collection[str],
        others: Mapping[str, str] | None = None,
    ) -> None:
        """Refuse anything but tensors of exactly these names and shapes, stored in ``types``.

        Those named in ``others`` must be of the one type that stands there instead.

        Raises:
            TensorFileError: missing or extra tensors, a wrong shape, or another type.
        """
        missing, extra = shapes.keys() - self.entries.keys(), self.entries.keys() - shapes.keys()
        if missing:
            raise TensorFileError(f"{len(missing)} tensors are missing, {shorten(min(missing))}")
        if extra:
            raise TensorFileError(f"{len(extra)} tensors too many, {shorten(min(extra))}")
        for name, shape in shapes.items():
            entry = self.entries[name]
            fitting = (others[name],) if others and name in others else types
            if entry["dtype"] not in fitting:
                raise TensorFileError(
                    f"{name} is stored as {entry['dtype']}, expected {' or '.join(fitting)}"
                )
            if tuple(entry["shape"]) != shape:
                raise TensorFileError(f"{name} has shape {entry['shape']}, expected {list(shape)}")

    def tensors(self) -> Tensors:
        """All tensors in the file's order, floats in float32.

        Raises:
            TensorFileError: a stored type is none of ``TYPES``, or a value is not finite.
        """
        tensors = {name: self._tensor(name) for name in self.entries}
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise TensorFileError(f"{shorten(name)} holds values that are not finite")
        return tensors

    def _tensor(self, name: str) -> torch.Tensor:
        entry = self.entries[name]
        dtype = TYPES.get(entry["dtype"])
        if dtype is None:
            raise TensorFileError(
                f"{shorten(name)} is stored as {entry['dtype']}, expected {' or '.join(TYPES)}"
            )
        if not entry["data"]:
            return torch.empty(entry["shape"])
        tensor = torch.frombuffer(entry["data"], dtype=dtype).reshape(entry["shape"])
        return tensor.float() if dtype.is_floating_point else tensor


def read_tensor_file(data: bytes) -> TensorFile:
    """Parse ``data``.

    Raises:
        TensorFileError: truncated, garbage, or a header beyond ``HEADER_LIMIT_BYTES``.
    """
    if len(data) < 8:
        raise TensorFileError(f"{len(data)} bytes are too few for a safetensors file")
    header_bytes = int.from_bytes(data[:8], "little")
    if header_bytes > HEADER_LIMIT_BYTES:
        raise TensorFileError(
            f"a header of {header_bytes} bytes is over the limit of {HEADER_LIMIT_BYTES}"
        )
    try:
        # Checks JSON, nesting, offsets and the length.
        entries = dict(deserialize(data))  # type: ignore[no-untyped-call]
        metadata = json.loads(data[8 : 8 + header_bytes]).get("__metadata__")
    except (SafetensorError, ValueError) as error:
        raise TensorFileError(f"not a whole safetensors file: {error}") from error
    return TensorFile(metadata or {}, entries)


def shorten(value: object) -> str:
    """``repr`` of a value from outside, cut so that a message stays readable."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def in_eight_bits(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (N, ...) as int8 and the factor (N,) of each, by which its longest number fits."""
    factors = rows.flatten(1).abs().amax(1) / 127
    least = torch.finfo(torch.float32).tiny
    shape = (-1, *[1] * (rows.ndim - 1))
    return (rows / factors.clamp(min=least).view(shape)).round().to(torch.int8), factors
