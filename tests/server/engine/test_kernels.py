"""Operations of our own: what PyTorch computes, at any shape; and machines without a compiler."""

import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from server.engine import kernels
from server.engine.kernels import (
    KernelsError,
    compile_kernels,
    compiler,
    found_kernels,
    load_kernels,
)
from server.engine.kv import store
from server.engine.slots import UNTAUGHT, compact

UNSEEN = torch.finfo(torch.float32).min


REFUSING = f"{sys.executable} -c \"import sys; sys.exit('error: no such standard')\""


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    if not compiler():
        pytest.skip("no C++ compiler")
    assert load_kernels()


def noise(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


@settings(max_examples=60, deadline=None)
@given(
    adapters=st.integers(1, 5),
    each=st.integers(1, 4),
    rank=st.sampled_from([1, 2, 3, 4, 5, 8, 12, 16, 17, 32, 64]),
    inside=st.integers(1, 80),
    out=st.integers(1, 80),
    scale=st.sampled_from([1.0, 0.25, -2.0]),
    seed=st.integers(0, 1000),
)
def test_an_adapter_is_added_as_pytorch_does(
    adapters: int, each: int, rank: int, inside: int, out: int, scale: float, seed: int
) -> None:
    made = noise(seed)
    output, inputs = made(adapters * each, 1, out), made(adapters * each, 1, inside)
    a, b = made(adapters + 2, rank, inside), made(adapters + 2, out, rank)
    kept = compact({"q.lora_A": a, "q.lora_B": b})
    kept["q.factors"][UNTAUGHT] = float("nan")  # is not even read
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randint(adapters + 2, (adapters,), generator=generator)
    own = slots.repeat_interleave(each)
    down = kept["q.lora_A"].float() * kept["q.factors"].unsqueeze(-1)
    delta = scale * (inputs @ down[own].mT @ kept["q.lora_B"].float()[own])
    expected = torch.where((own == UNTAUGHT)[:, None, None], output, output + delta)
    found = torch.ops.innerloop.add_lora(output, inputs, *kept.values(), slots, scale)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    assert found.data_ptr() == output.data_ptr(), "in place"


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 4),
    groups=st.integers(1, 3),
    shared=st.integers(1, 3),
    columns=st.integers(1, 70),
    key_width=st.sampled_from([1, 4, 24, 32, 64, 80, 128]),
    value_width=st.sampled_from([None, 8, 48]),
    window=st.sampled_from([None, 1, 5]),
    seed=st.integers(0, 1000),
)
def test_a_token_attends_as_in_pytorch(
    rows: int,
    groups: int,
    shared: int,
    columns: int,
    key_width: int,
    value_width: int | None,
    window: int | None,
    seed: int,
) -> None:
    made = noise(seed)
    query = made(rows, 1, groups * shared, key_width).transpose(1, 2)
    keys = made(rows + 1, groups, columns + 3, key_width)[:rows, :, :columns]
    values = made(rows + 1, groups, columns + 3, value_width or key_width)[:rows, :, :columns]
    ends = torch.randint(columns, (rows, 1), generator=torch.Generator().manual_seed(seed))
    back = ends - torch.arange(columns)  # how far behind the row's newest token
    seen = (back >= 0) & (back < (window or columns))
    mask = torch.zeros(rows, 1, 1, columns).masked_fill(~seen[:, None, None], UNSEEN)
    expected = scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, scale=0.3, enable_gqa=True
    )
    # What is not seen need not even be finite in memory that was never written.
    hidden = ~seen[:, None, :, None]
    keys, values = keys.masked_fill(hidden, 3e38), values.masked_fill(hidden, -3e38)
    found = torch.ops.innerloop.attend(query, keys, values, mask, 0.3)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 3])
def test_long_sequences_are_shared_by_threads(threads: int) -> None:
    made = noise(3)
    query, keys, values = made(8, 4, 1, 64), made(8, 4, 900, 64), made(8, 4, 900, 64)
    mask = torch.zeros(1, 1, 1, 900)  # one for all rows
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = torch.ops.innerloop.attend(query, keys, values, mask, 0.125)
    finally:
        torch.set_num_threads(before)
    expected = scaled_dot_product_attention(query, keys, values).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_keys_are_stored_where_pytorch_does() -> None:
    made = noise(5)
    kept, states = (
        made(4, 2, 9, 6),
        made(3, 5, 2, 6).transpose(1, 2),
    )  # (B, H, T, D) of another order
    rows, columns = torch.tensor([[2], [0], [1]]), torch.tensor([[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]])
    columns = torch.cat([columns, columns[:1] + 1])
    expected = kept.clone()
    store(expected, states, rows, columns)
    torch.ops.innerloop.store(kept, states, rows, columns)
    assert torch.equal(kept, expected)


def test_numbers_in_16_bits_are_within_half_a_step() -> None:
    rows = noise(7)(4, 5, 33)
    rows[1, 2] = 0
    rows[2, 0] *= 1e-35  # nothing, and no division by nearly nothing
    rows[3, 3] *= 1e30
    numbers, factors = torch.ops.innerloop.in_16_bits(rows.mT.contiguous().mT)
    assert (numbers.dtype, numbers.shape, factors.shape) == (torch.int16, rows.shape, (4, 5))
    found = numbers * factors.unsqueeze(-1)
    assert ((found - rows).abs() <= 0.501 * factors.unsqueeze(-1) + 1e-30).all()
    assert numbers.abs().amax(-1).flatten().unique().tolist() == [0, 32767]
    for odd in (float("inf"), float("-inf"), float("nan")):
        rows[0, 0, 5] = odd
        numbers, factors = torch.ops.innerloop.in_16_bits(rows)
        assert (factors.isnan() | factors.isinf()).flatten().nonzero().tolist() == [[0]]
        assert not numbers[0, 0].any()


def test_other_numbers_and_views_are_refused() -> None:
    half = torch.zeros(1, 1, 1, 4, dtype=torch.float16)
    with pytest.raises(RuntimeError, match="expected scalar type Float"):
        torch.ops.innerloop.attend(half, half, half, half, 1.0)
    whole, slots = torch.zeros(1, 1, 4), torch.ones(1, dtype=torch.long)
    with pytest.raises(RuntimeError, match="expected scalar type Short"):
        torch.ops.innerloop.add_lora(*[whole] * 5, slots, 1.0)
    with pytest.raises(RuntimeError, match="no views"):
        torch.ops.innerloop.add_lora(whole.mT.expand(1, 4, 4), *[whole] * 4, slots, 1.0)
    with pytest.raises(RuntimeError, match="do not fit"):
        torch.ops.innerloop.add_lora(whole, *[whole] * 3, torch.ones(1, 2), slots, 1.0)
    with pytest.raises(RuntimeError, match="equal shares"):
        torch.ops.innerloop.add_lora(*[whole] * 4, torch.ones(1, 1), slots[:0], 1.0)


def test_a_library_is_found_again_and_whole(built: Path) -> None:
    assert built.stat().st_size > 10_000
    assert [place for place in built.parent.iterdir() if place.name.startswith("tmp")] == []


@pytest.fixture(scope="module")
def built() -> Path:
    """What this machine compiled."""
    found = found_kernels()
    assert found is not None
    return found


@pytest.fixture
def unbuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine where nothing was compiled yet, and only the user's cache may be written to."""
    kept = tmp_path / "cache"
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(kernels.sys, "prefix", str(tmp_path / "file"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))
    load_kernels.cache_clear()
    yield kept
    load_kernels.cache_clear()


def test_it_is_compiled_into_the_cache(unbuilt: Path) -> None:
    assert found_kernels() is None
    assert compile_kernels() == found_kernels()
    assert [place.parent for place in unbuilt.rglob("*.so")] == [unbuilt / "innerloop"]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("/no/such/compiler", "does not run"),
        (REFUSING, "fails: error: no such standard"),
        (None, "there is no C++ compiler"),
    ],
)
def test_without_a_compiler_it_says_so(
    unbuilt: Path,
    command: str | None,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PATH", str(unbuilt))
    monkeypatch.setenv("CXX", command or "")
    with pytest.raises(KernelsError, match=re.escape(told)):
        compile_kernels()
    monkeypatch.setattr(kernels, "_is_loaded", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert not load_kernels()
    assert told in caplog.text


def test_a_library_of_another_machine_is_compiled_again(unbuilt: Path, built: Path) -> None:
    place = unbuilt / "innerloop" / kernels._name()
    place.parent.mkdir(parents=True)
    place.write_bytes(b"not a library")
    load = f"""
import sys, logging
from pathlib import Path
logging.basicConfig(level=logging.INFO)
sys.prefix = {str(unbuilt.parent / "file")!r}
from server.engine import kernels
kernels._compile = lambda place: Path({str(built)!r})  # half a minute of a slow core
assert kernels.load_kernels()
"""  # a process loads them once
    done = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True, check=True)
    assert "is compiled again" in done.stderr
    assert place.read_bytes() == built.read_bytes()
