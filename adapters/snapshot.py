"""One adapter as bytes and back: safetensors with a header that says what it belongs to.

Equal adapters give equal bytes. Knows nothing about where the bytes are kept. Never pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from adapters.config import AdapterError, LoraSpec
from adapters.state import AdapterState, Taught, Tensors
from adapters.tensor_file import (
    TensorFile,
    TensorFileError,
    in_eight_bits,
    read_tensor_file,
    shorten,
)

FORMAT_VERSION: Final = 2
# One key for everything: safetensors writes several in random order, and equal adapters must give
# equal bytes.
METADATA_KEY: Final = "innerloop.adapter"
KEYS: Final = "gate.keys"
ANSWERS: Final = "gate.answers"
COMPLETIONS: Final = "gate.completions"
VIEW: Final = "gate_view"  # the header's word for what made the keys; equal ones can be compared
SCALE: Final = ".scale"  # ends the name of the factors of an int8 tensor's rows

Precision = Literal["float32", "bfloat16", "int8"]
_STORED: Final[Mapping[Precision, str]] = {"float32": "F32", "bfloat16": "BF16", "int8": "I8"}


@dataclass(frozen=True)
class Start:
    """Where adapters begin: what a compact snapshot is the difference to.

    ``tensors``: in float32, on the CPU. ``digest`` names them.
    """

    tensors: Tensors
    digest: str


class SnapshotError(AdapterError, ValueError):
    """Bytes are no snapshot that can be used here; the message names what differs."""


def form_of(spec: LoraSpec) -> dict[str, object]:
    """What makes two adapters of one form, with equal meanings written equally."""
    return {
        "rank": spec.rank,
        "alpha": float(spec.scale * spec.rank),
        "targets": sorted(spec.targets),
        "scope": spec.scope,
    }


def dumps(
    state: AdapterState, precision: Precision = "float32", start: Start | None = None
) -> bytes:
    """``state`` as bytes.

    Args:
        precision: of the difference to ``start``; of the whole adapter with float32.
        start: needed for any other.

    Raises:
        SnapshotError: a tensor is not float32 or not finite: such an adapter is not kept.
    """
    kept = dict(state.tensors)
    if state.taught is not None:
        kept |= {KEYS: state.taught.keys, ANSWERS: state.taught.answers}
        if state.taught.completions is not None:
            kept[COMPLETIONS] = state.taught.completions.to(torch.int32)
    for name, tensor in kept.items():
        expected = {ANSWERS: torch.int64, COMPLETIONS: torch.int32}.get(name, torch.float32)
        if tensor.dtype != expected:
            raise SnapshotError(f"{name} is {tensor.dtype}, expected {expected}")
        if not bool(torch.isfinite(tensor).all()):
            raise SnapshotError(f"{name} holds values that are not finite")
    if precision != "float32":
        if start is None:
            raise SnapshotError(f"a snapshot in {precision} needs to know where adapters begin")
        kept = _compact(kept, precision, start)
    header = _header(state.spec, state.base_fingerprint, precision, start)
    header[VIEW] = None if state.taught is None else state.taught.view
    # Tensors of a slot share memory with their neighbours, which safetensors refuses.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in kept.items()
    }
    return save(tensors, {METADATA_KEY: json.dumps(header, sort_keys=True)})


def loads(
    data: bytes,
    *,
    spec: LoraSpec,
    base_fingerprint: str,
    shapes: Mapping[str, tuple[int, ...]],
    start: Start | None = None,
) -> AdapterState:
    """The adapter in ``data``, on the CPU, its tensors in the order of ``shapes``.

    Args:
        spec: the form that adapters have here.
        base_fingerprint: the base they belong to here.
        shapes: shape of every tensor by name.
        start: where they begin here; without it, compact snapshots are refused.

    Raises:
        SnapshotError: anything else than a whole snapshot of exactly this form.
    """
    try:
        file = read_tensor_file(data)
        precision, view = _checked_header(file, spec, base_fingerprint, start)
        gated = file.entries.keys() & {KEYS, ANSWERS, COMPLETIONS}
        known = _taught_shapes(file) if gated else {}
        scales = {}
        if precision == "int8":
            scales = {name + SCALE: shape[:1] for name, shape in shapes.items()}
        keys = "F32" if precision == "float32" else "F16"
        others = {KEYS: keys, ANSWERS: "I64", COMPLETIONS: "I32"} | dict.fromkeys(scales, "F32")
        file.check({**shapes, **known, **scales}, (_STORED[precision],), others)
        tensors = file.tensors()
    except TensorFileError as error:
        raise SnapshotError(f"no usable adapter snapshot: {error}") from error
    taught = None
    if known:
        said = tensors.get(COMPLETIONS)
        taught = Taught(
            tensors[KEYS], tensors[ANSWERS], str(view), None if said is None else said.long()
        )
    if precision == "float32":
        whole = {name: tensors[name] for name in shapes}
    else:
        assert start is not None
        whole = {name: start.tensors[name] + _difference(tensors, name) for name in shapes}
    return AdapterState(spec, whole, base_fingerprint, taught)


def _compact(kept: Tensors, precision: Precision, start: Start) -> Tensors:
    """Differences in 16 bits, or in 8 with a factor for each row that makes its longest fit."""
    found: Tensors = {}
    for name, tensor in kept.items():
        if name == KEYS:
            found[name] = tensor.half()
        elif name in (ANSWERS, COMPLETIONS):
            found[name] = tensor
        else:
            difference = tensor.detach().cpu() - start.tensors[name]
            if precision == "bfloat16":
                found[name] = difference.bfloat16()
                continue
            found[name], found[name + SCALE] = in_eight_bits(difference)
    return found


def _difference(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    scale = tensors.get(name + SCALE)
    return tensors[name] if scale is None else tensors[name] * scale.unsqueeze(1)


def _taught_shapes(file: TensorFile) -> dict[str, tuple[int, ...]]:
    """The gate's keys may be of any number and width, but must be some vectors."""
    shape = tuple(file.entries[KEYS]["shape"]) if KEYS in file.entries else ()
    if len(shape) != 2 or 0 in shape:
        raise SnapshotError(f"{KEYS} has shape {list(shape)}, expected vectors (N, E)")
    shapes = {KEYS: shape, ANSWERS: shape[:1]}
    if COMPLETIONS in file.entries:
        said = tuple(file.entries[COMPLETIONS]["shape"])
        if len(said) != 2 or said[0] != shape[0]:
            raise SnapshotError(f"{COMPLETIONS} has shape {list(said)}, expected ({shape[0]}, L)")
        shapes[COMPLETIONS] = said
    return shapes


def _header(
    spec: LoraSpec, base_fingerprint: str, precision: str, start: Start | None
) -> dict[str, object]:
    header = {
        "format_version": FORMAT_VERSION,
        "base_fingerprint": base_fingerprint,
        "dtype": precision,
        **form_of(spec),
    }
    if precision != "float32":
        header["start"] = None if start is None else start.digest
    return header


def _checked_header(
    file: TensorFile, spec: LoraSpec, base_fingerprint: str, start: Start | None
) -> tuple[Precision, object]:
    """The precision that the file is in, and what made its gate's keys."""
    text = file.metadata.get(METADATA_KEY)
    if text is None:
        raise SnapshotError("no adapter snapshot: the file does not say what it belongs to")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SnapshotError(f"the snapshot's header is not JSON: {error}") from error
    stored = found.get("dtype") if isinstance(found, dict) else None
    compact: Precision | None = next((p for p in ("bfloat16", "int8") if p == stored), None)
    precision: Precision = "float32" if compact is None or start is None else compact
    expected = _header(spec, base_fingerprint, precision, start)
    if not isinstance(found, dict) or found.keys() != expected.keys() | {VIEW}:
        raise SnapshotError(f"the snapshot's header is not of format {FORMAT_VERSION}")
    for key, value in expected.items():
        if found[key] != value:
            raise SnapshotError(
                f"the snapshot's {key} is {shorten(found[key])}, expected {shorten(value)}"
            )
    return precision, found[VIEW]
