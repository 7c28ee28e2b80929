"""How alike texts are by shared tokens: rare ones count more, and none in common is 0."""

import pytest

from adapters.overlap import overlaps


def test_the_same_tokens_are_alike_in_any_order_and_strangers_are_not() -> None:
    same, none = overlaps((1, 2, 3), [(3, 2, 1), (4, 5)])
    assert same == pytest.approx(1.0)
    assert none == 0.0


def test_a_rare_token_in_common_counts_more_than_a_frequent_one() -> None:
    rare, frequent, _ = overlaps((1, 2), [(1, 8), (2, 9), (2, 7)])
    assert rare > frequent > 0


def test_empty_texts_are_like_nothing() -> None:
    assert overlaps((), [(1,), ()]) == [0.0, 0.0]
    assert overlaps((1,), []) == []
