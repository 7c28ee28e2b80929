"""What the guard lets through, and what it refuses and why."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.guard import (
    DEFAULT_LIMITS,
    GuardLimits,
    Verdict,
    check,
    norm,
    parts,
    shorten,
    update_norm,
)
from adapters.state import Tensors, stack, take

START = {"a.lora_A": torch.tensor([[3.0, 0.0]]), "a.lora_B": torch.tensor([[0.0], [4.0]])}


def moved(by: float) -> Tensors:
    """``START`` after an update of norm ``by``."""
    return {**START, "a.lora_A": START["a.lora_A"] + torch.tensor([[0.0, by]])}


def test_norms() -> None:
    assert norm(START) == pytest.approx(5.0)
    assert update_norm(moved(2.0), START) == pytest.approx(2.0)


def test_a_good_update_is_accepted_whole() -> None:
    assert check(moved(1.0), START, 2.0, 1.0) == Verdict(True, None, 1.0)
    assert check(moved(1.0), START, 2.0, 2.0).accepted
    assert check(moved(1.0), START, 2.0, 1.0, scale=0.5) == Verdict(True, None, 0.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    verdict = check(moved(bad), START, 2.0, 1.0)
    assert not verdict.accepted
    assert verdict.reason == "the adapted weights are not finite"


def test_an_update_too_long_is_refused() -> None:
    bound = 5.0 * DEFAULT_LIMITS.update_ratio
    assert check(moved(bound * 0.999), START, 2.0, 1.0).accepted
    verdict = check(moved(bound * 1.001), START, 2.0, 1.0)
    assert not verdict.accepted
    assert verdict.reason is not None
    assert "over the bound of 5" in verdict.reason
    assert not check(moved(1.1), START, 2.0, 1.0, GuardLimits(update_ratio=0.2)).accepted
    assert not check(moved(3e38), START, 2.0, 1.0).accepted


@pytest.mark.parametrize(
    ("before", "after"), [(1.0, 1.001), (1.0, math.nan), (math.nan, 1.0), (1.0, math.inf)]
)
def test_a_loss_that_does_not_fall_is_refused(before: float, after: float) -> None:
    verdict = check(moved(1.0), START, before, after)
    assert not verdict.accepted
    assert verdict.reason is not None
    assert "loss on the feedback" in verdict.reason


@settings(deadline=None)
@given(
    by=st.floats(allow_nan=True, allow_infinity=True, width=32),
    before=st.floats(),
    after=st.floats(),
)
def test_whatever_is_accepted_is_finite_short_and_no_worse(
    by: float, before: float, after: float
) -> None:
    verdict = check(moved(by), START, before, after)
    assert verdict.accepted == (verdict.reason is None)
    if verdict.accepted:
        assert abs(by) <= 5.01
        assert after <= before


def test_the_parts_of_a_refused_update_that_are_tried() -> None:
    assert parts(0) == ()
    assert parts(2) == (0.5, 0.25)


def test_a_part_says_why_it_is_not_the_whole() -> None:
    whole = check(moved(6.0), START, 2.0, 1.0)
    half = check(moved(3.0), START, 2.0, 1.5, scale=0.5).instead_of(whole)
    assert (half.accepted, half.scale) == (True, 0.5)
    assert half.reason == "taken at 0.5 of its length: the update has norm 6, over the bound of 5"


@settings(deadline=None)
@given(
    sizes=st.lists(st.floats(0, 1024, width=32), min_size=2, max_size=2),
    factors=st.lists(st.floats(0.0625, 1, width=32), min_size=2, max_size=2),
)
def test_every_session_is_shortened_by_its_own_factor(
    sizes: list[float], factors: list[float]
) -> None:
    wholes = [moved(size) for size in sizes]
    found = shorten(stack(wholes), START, factors)
    for session, (whole, factor) in enumerate(zip(wholes, factors, strict=True)):
        part = take(found, session)
        wanted = factor * update_norm(whole, START)
        assert update_norm(part, START) == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_a_whole_update_stays_as_it_is_bit_for_bit_beside_a_shortened_one() -> None:
    generator = torch.Generator().manual_seed(0)
    start = {"a": torch.randn(50, 40, generator=generator)}
    stacked = {"a": 3 * torch.randn(2, 50, 40, generator=generator)}
    found = shorten(stacked, start, [1.0, 0.25])
    assert torch.equal(found["a"][0], stacked["a"][0])
    alone = shorten({"a": stacked["a"][1:]}, start, [0.25])
    assert torch.equal(found["a"][1], alone["a"][0])
