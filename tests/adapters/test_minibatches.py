"""Which items a step is over: all where they are few, else each once a pass."""

from hypothesis import given
from hypothesis import strategies as st

from adapters.minibatches import minibatches, steps_a_pass


@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 20))
def test_a_pass_takes_every_item_once_in_parts_of_about_the_same_size(
    count: int, passes: int, size: int
) -> None:
    batches = list(minibatches(count, passes, size))
    parts = steps_a_pass(count, size)
    assert len(batches) == passes * parts
    for begin in range(0, len(batches), parts):
        own = batches[begin : begin + parts]
        assert sorted(place for batch in own for place in batch) == list(range(count))
        assert max(map(len, own)) - min(map(len, own)) <= 1
        assert max(map(len, own)) <= size
    assert batches == list(minibatches(count, passes, size)), "derived again, it is the same"


def test_few_items_are_taken_all_at_once_in_their_order() -> None:
    assert list(minibatches(16, 2)) == [range(16)] * 2
    assert list(minibatches(300, 1, None)) == [range(300)]
    assert (steps_a_pass(16), steps_a_pass(17), steps_a_pass(300, None)) == (1, 2, 1)


def test_passes_differ() -> None:
    first, second, third, fourth = minibatches(17, 2)
    assert {frozenset(first), frozenset(second)} != {frozenset(third), frozenset(fourth)}
