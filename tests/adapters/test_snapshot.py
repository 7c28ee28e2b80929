"""Adapters survive as bytes exactly; nothing but a whole snapshot of the right form is taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from tiny_models import LLAMA_TARGETS, llama_spec, make_llama, random_adapter

from adapters.config import LoraSpec
from adapters.snapshot import METADATA_KEY, Precision, SnapshotError, Start, dumps, loads
from adapters.state import AdapterState, Tensors, repeat, stack, take, tensor_shapes
from adapters.tensor_file import HEADER_LIMIT_BYTES

MODEL = make_llama()
SPEC = llama_spec()
SHAPES = tensor_shapes(MODEL, SPEC)
BASE = "5e" * 32
STATE = AdapterState(SPEC, random_adapter(MODEL, SPEC), BASE)
WHOLE = dumps(STATE)
HEADER = {
    "format_version": 2,
    "gate_view": None,
    "base_fingerprint": BASE,
    "dtype": "float32",
    "rank": 4,
    "alpha": 4.0,
    "targets": sorted(LLAMA_TARGETS),
    "scope": "activated",
}
FIRST = next(iter(SHAPES))


def read(data: bytes, spec: LoraSpec = SPEC, base: str = BASE) -> AdapterState:
    return loads(data, spec=spec, base_fingerprint=base, shapes=SHAPES)


def written(tensors: Tensors | None = None, **header: Any) -> bytes:
    """A snapshot with parts exchanged."""
    text = json.dumps({**HEADER, **header})
    return save(tensors or STATE.tensors, {METADATA_KEY: text})


def test_round_trip_is_exact() -> None:
    again = read(WHOLE)
    assert again.spec == SPEC
    assert again.base_fingerprint == BASE
    assert list(again.tensors) == list(STATE.tensors)
    for name, tensor in STATE.tensors.items():
        assert torch.equal(again.tensors[name], tensor)
        assert again.tensors[name].dtype == torch.float32
    again.tensors[FIRST].add_(1.0)  # the tensors are our own and can be written


@pytest.mark.parametrize(("precision", "error"), [("bfloat16", 2**-8), ("int8", 1 / 254)])
def test_a_difference_in_fewer_bits_is_near_and_small(precision: Precision, error: float) -> None:
    start = Start(random_adapter(MODEL, SPEC, seed=9), "d1")
    data = dumps(STATE, precision, start)
    assert data == dumps(STATE, precision, start)
    assert len(data) < len(WHOLE) * {"bfloat16": 0.6, "int8": 0.7}[precision]
    again = loads(data, spec=SPEC, base_fingerprint=BASE, shapes=SHAPES, start=start)
    assert list(again.tensors) == list(STATE.tensors)
    for name, tensor in STATE.tensors.items():
        longest = (tensor - start.tensors[name]).abs().amax(1, keepdim=True)
        assert again.tensors[name].dtype == torch.float32
        assert bool(((again.tensors[name] - tensor).abs() <= error * longest + 1e-7).all())
    same = loads(
        dumps(AdapterState(SPEC, start.tensors, BASE), precision, start),
        spec=SPEC,
        base_fingerprint=BASE,
        shapes=SHAPES,
        start=start,
    )
    assert all(torch.equal(same.tensors[name], start.tensors[name]) for name in SHAPES)


def test_a_difference_is_of_no_use_from_another_start() -> None:
    start = Start(random_adapter(MODEL, SPEC, seed=9), "d1")
    data = dumps(STATE, "int8", start)
    with pytest.raises(SnapshotError, match="start is 'd1', expected 'd2'"):
        loads(
            data, spec=SPEC, base_fingerprint=BASE, shapes=SHAPES, start=replace(start, digest="d2")
        )
    with pytest.raises(SnapshotError):
        read(data)
    with pytest.raises(SnapshotError, match="begin"):
        dumps(STATE, "int8")
    whole = loads(WHOLE, spec=SPEC, base_fingerprint=BASE, shapes=SHAPES, start=start)
    assert all(torch.equal(whole.tensors[name], STATE.tensors[name]) for name in SHAPES)


def test_equal_adapters_give_equal_bytes() -> None:
    stacked = stack([STATE.tensors, STATE.tensors])
    backwards = dict(reversed(take(stacked, 1).items()))
    views = {name: tensor[0] for name, tensor in repeat(STATE.tensors, 2).items()}
    assert dumps(AdapterState(SPEC, backwards, BASE)) == WHOLE
    assert dumps(AdapterState(SPEC, views, BASE)) == WHOLE
    assert dumps(AdapterState(SPEC, {n: t[0] for n, t in stacked.items()}, BASE)) == WHOLE


def test_target_order_and_the_way_alpha_is_written_do_not_matter() -> None:
    other = LoraSpec(4, tuple(reversed(LLAMA_TARGETS)), 4.0)
    assert read(WHOLE, other).spec == other
    assert dumps(AdapterState(other, STATE.tensors, BASE)) == WHOLE


@pytest.mark.parametrize(
    ("spec", "base", "message"),
    [
        (llama_spec(rank=8), BASE, "rank is 4, expected 8"),
        (llama_spec(alpha=8.0), BASE, "alpha is 4.0, expected 8.0"),
        (llama_spec("full"), BASE, "scope is 'activated', expected 'full'"),
        (LoraSpec(4, ("q_proj",)), BASE, "targets is"),
        (SPEC, "00" * 32, "base_fingerprint is '5e5e"),
    ],
)
def test_another_form_or_base_is_refused(spec: LoraSpec, base: str, message: str) -> None:
    with pytest.raises(SnapshotError, match=message):
        read(WHOLE, spec, base)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"format_version": 1}, "format_version is 1, expected 2"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"rank": "4"}, "rank is '4', expected 4"),
        ({"rank": None}, "rank is None"),
        ({"scope": ["activated"] * 100}, r"scope is \['activated', .*\.\.\., expected"),
        ({"extra": 1}, "not of format 2"),
    ],
)
def test_another_header_is_refused(header: dict[str, Any], message: str) -> None:
    with pytest.raises(SnapshotError, match=message):
        read(written(**header))


@pytest.mark.parametrize("text", ["", "[]", "{}", "nul", "[" * 50_000, '{"rank": 4}'])
def test_a_header_that_is_no_header_is_refused(text: str) -> None:
    with pytest.raises(SnapshotError, match="header is not"):
        read(save(STATE.tensors, {METADATA_KEY: text}))


def test_a_file_without_our_header_is_refused() -> None:
    for metadata in (None, {"format": "pt"}):
        with pytest.raises(SnapshotError, match="does not say what it belongs to"):
            read(save(STATE.tensors, metadata))


def changed(change: Callable[[Tensors], object]) -> Tensors:
    tensors = dict(STATE.tensors)
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(FIRST), f"1 tensors are missing, '{FIRST}'"),
        (lambda t: t.update(extra=torch.ones(1)), "1 tensors too many, 'extra'"),
        (lambda t: t.update({FIRST: t[FIRST][:, :-1].contiguous()}), "has shape"),
        (lambda t: t.update({FIRST: t[FIRST].flatten()}), "has shape"),
        (lambda t: t.update({FIRST: torch.zeros(0)}), "has shape"),
        (lambda t: t.update({FIRST: t[FIRST].double()}), "stored as F64, expected F32"),
        (lambda t: t.update({FIRST: t[FIRST].half()}), "stored as F16, expected F32"),
        (lambda t: t.update({FIRST: t[FIRST].long()}), "stored as I64, expected F32"),
        (lambda t: t.update({FIRST: t[FIRST] * float("nan")}), "not finite"),
        (lambda t: t.update({FIRST: t[FIRST] + float("inf")}), "not finite"),
    ],
)
def test_other_tensors_are_refused(change: Callable[[Tensors], object], message: str) -> None:
    with pytest.raises(SnapshotError, match=message):
        read(written(changed(change)))


def test_an_adapter_that_is_not_float32_or_not_finite_is_not_written() -> None:
    for bad, message in (
        (torch.ones(2).half(), "float16"),
        (torch.full((2,), torch.nan), "finite"),
    ):
        with pytest.raises(SnapshotError, match=message):
            dumps(AdapterState(SPEC, {FIRST: bad}, BASE))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 200, len(WHOLE) // 2, len(WHOLE) - 1])
def test_truncated_bytes_are_refused(size: int) -> None:
    with pytest.raises(SnapshotError):
        read(WHOLE[:size])


def test_bytes_too_many_are_refused() -> None:
    with pytest.raises(SnapshotError):
        read(WHOLE + b"\0")


def test_huge_headers_are_refused_before_they_are_read() -> None:
    for size in (HEADER_LIMIT_BYTES + 1, 2**63, 2**64 - 1):
        with pytest.raises(SnapshotError, match="over the limit"):
            read(size.to_bytes(8, "little") + b"{" * 100)
    big = save({}, {"x": "y" * (HEADER_LIMIT_BYTES + 1)})
    with pytest.raises(SnapshotError, match="over the limit"):
        read(big)


def test_pickle_is_garbage_like_any_other() -> None:
    with pytest.raises(SnapshotError):
        read(b"\x80\x04}\x94\x8c\x01x\x94K\x01s.")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
@example(b"\x02\0\0\0\0\0\0\0{}")
@example(b"\x02\0\0\0\0\0\0\0[]")
@example((5000).to_bytes(8, "little") + b"[" * 5000)
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(SnapshotError):
        read(data)


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, len(WHOLE) - 1), value=st.integers(0, 255))
def test_one_changed_byte_is_refused_or_gives_a_finite_adapter(place: int, value: int) -> None:
    data = bytearray(WHOLE)
    data[place] = value
    try:
        state = read(bytes(data))
    except SnapshotError:
        return
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.tensors.values())
    assert {name: tuple(tensor.shape) for name, tensor in state.tensors.items()} == SHAPES
