"""Norms of what adapters add to weights, against the product written out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters.norms import weight_change, weight_changes

SIZES = st.integers(1, 7)


@given(SIZES, SIZES, SIZES, st.floats(0.1, 4), st.integers(0, 2**31))
def test_it_is_the_norm_of_the_written_out_difference(
    rank: int, size_in: int, size_out: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def drawn() -> dict[str, torch.Tensor]:
        return {
            f"{module}.{part}": torch.randn(*shape, generator=generator)
            for module in ("deep.up", "down")
            for part, shape in (("lora_A", (rank, size_in)), ("lora_B", (size_out, rank)))
        }

    adapter, start = drawn(), drawn()
    found = weight_changes(adapter, start, scale)
    assert list(found) == ["deep.up", "down"]
    for module, norm in found.items():
        moved = [t[f"{module}.lora_B"] @ t[f"{module}.lora_A"] for t in (adapter, start)]
        expected = scale * float((moved[0] - moved[1]).norm())
        assert norm == pytest.approx(expected, rel=1e-5)


def test_an_adapter_that_did_not_move_has_none() -> None:
    start = {"m.lora_A": torch.randn(3, 5), "m.lora_B": torch.randn(4, 3)}
    assert weight_change(start, start, 2.0) == pytest.approx(0, abs=1e-5)
    assert weight_changes(start, start, 2.0)["m"] == pytest.approx(0, abs=1e-5)
