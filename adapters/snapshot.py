"""One adapter as bytes and back: safetensors with a header that says what it belongs to.

Equal adapters give equal bytes. Knows nothing about where the bytes are kept. Never pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

import torch
from safetensors.torch import save

from adapters.config import AdapterError, LoraSpec
from adapters.state import AdapterState, Taught
from adapters.tensor_file import TensorFile, TensorFileError, read_tensor_file, shorten

FORMAT_VERSION: Final = 2
# One key for everything: safetensors writes several in random order, and equal adapters must give
# equal bytes.
METADATA_KEY: Final = "innerloop.adapter"
KEYS: Final = "gate.keys"
ANSWERS: Final = "gate.answers"
VIEW: Final = "gate_view"  # the header's word for what made the keys; equal ones can be compared


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


def dumps(state: AdapterState) -> bytes:
    """``state`` as bytes.

    Raises:
        SnapshotError: a tensor is not float32 or not finite: such an adapter is not kept.
    """
    tensors = {}
    kept = dict(state.tensors)
    if state.taught is not None:
        kept |= {KEYS: state.taught.keys, ANSWERS: state.taught.answers}
    for name, tensor in kept.items():
        expected = torch.int64 if name == ANSWERS else torch.float32
        if tensor.dtype != expected:
            raise SnapshotError(f"{name} is {tensor.dtype}, expected {expected}")
        if not bool(torch.isfinite(tensor).all()):
            raise SnapshotError(f"{name} holds values that are not finite")
        # Tensors of a slot share memory with their neighbours, which safetensors refuses.
        tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    header = _header(state.spec, state.base_fingerprint)
    header[VIEW] = None if state.taught is None else state.taught.view
    return save(tensors, {METADATA_KEY: json.dumps(header, sort_keys=True)})


def loads(
    data: bytes,
    *,
    spec: LoraSpec,
    base_fingerprint: str,
    shapes: Mapping[str, tuple[int, ...]],
) -> AdapterState:
    """The adapter in ``data``, on the CPU, its tensors in the order of ``shapes``.

    Args:
        spec: the form that adapters have here.
        base_fingerprint: the base they belong to here.
        shapes: shape of every tensor by name.

    Raises:
        SnapshotError: anything else than a whole snapshot of exactly this form.
    """
    try:
        file = read_tensor_file(data)
        header = _header(spec, base_fingerprint)
        view = _checked_header(file.metadata.get(METADATA_KEY), header)[VIEW]
        known = _taught_shapes(file) if KEYS in file.entries or ANSWERS in file.entries else {}
        file.check({**shapes, **known}, ("F32",), integers=(ANSWERS,))
        tensors = file.tensors()
    except TensorFileError as error:
        raise SnapshotError(f"no usable adapter snapshot: {error}") from error
    taught = Taught(tensors[KEYS], tensors[ANSWERS], str(view)) if known else None
    return AdapterState(spec, {name: tensors[name] for name in shapes}, base_fingerprint, taught)


def _taught_shapes(file: TensorFile) -> dict[str, tuple[int, ...]]:
    """The gate's keys may be of any number and width, but must be some vectors."""
    shape = tuple(file.entries[KEYS]["shape"]) if KEYS in file.entries else ()
    if len(shape) != 2 or 0 in shape:
        raise SnapshotError(f"{KEYS} has shape {list(shape)}, expected vectors (N, E)")
    return {KEYS: shape, ANSWERS: shape[:1]}


def _header(spec: LoraSpec, base_fingerprint: str) -> dict[str, object]:
    return {
        "format_version": FORMAT_VERSION,
        "base_fingerprint": base_fingerprint,
        "dtype": "float32",
        **form_of(spec),
    }


def _checked_header(text: str | None, expected: Mapping[str, object]) -> dict[str, object]:
    if text is None:
        raise SnapshotError("no adapter snapshot: the file does not say what it belongs to")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SnapshotError(f"the snapshot's header is not JSON: {error}") from error
    if not isinstance(found, dict) or found.keys() != expected.keys() | {VIEW}:
        raise SnapshotError(f"the snapshot's header is not of format {FORMAT_VERSION}")
    for key, value in expected.items():
        if found[key] != value:
            raise SnapshotError(
                f"the snapshot's {key} is {shorten(found[key])}, expected {shorten(value)}"
            )
    return found
