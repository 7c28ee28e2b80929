"""Prompts kept and gone on from, and losses on tensors alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import CPU, make_gpt2, make_llama
from transformers import PreTrainedModel

from adapters.objective import IGNORE, demonstration_loss, divergence
from adapters.prefix import Continuation, continue_from, empty_prefix, pad, prefill

prompts_strategy = st.lists(
    st.tuples(
        st.lists(st.integers(0, 99), max_size=8),
        st.lists(st.integers(0, 99), min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_llama() if request.param == "llama" else make_gpt2()


@settings(max_examples=25, deadline=None)
@given(rows=prompts_strategy)
def test_going_on_from_a_prefix_equals_the_whole_sequence(
    model: PreTrainedModel, rows: list[tuple[list[int], list[int]]]
) -> None:
    with torch.no_grad():
        prefix = prefill(model, [prompt for prompt, _ in rows], CPU)
        logits = continue_from(model, prefix, pad([rest for _, rest in rows], 0, CPU))
        for index, (prompt, rest) in enumerate(rows):
            whole = model(input_ids=torch.tensor([prompt + rest])).logits[0, len(prompt) :]
            torch.testing.assert_close(logits[index, : len(rest)], whole, atol=1e-4, rtol=1e-4)


def test_tokens_some_at_a_time_equal_all_at_once(model: PreTrainedModel) -> None:
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    for prompts in ([[7, 8, 9], [11]], [[], []]):
        with torch.no_grad():
            prefix = prefill(model, prompts, CPU)
            whole = continue_from(model, prefix, ids)
            rest = Continuation(model, prefix)
            parts = torch.cat([rest.extend(part) for part in ids.split([2, 1, 1], dim=1)], dim=1)
        torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)


def test_a_continuation_is_a_prefix_again(model: PreTrainedModel) -> None:
    tail = torch.tensor([[5, 6], [5, 6]])
    with torch.no_grad():
        whole = continue_from(model, prefill(model, [[7, 8, 1, 2, 3], [7, 8, 4]], CPU), tail)
        rest = Continuation(model, prefill(model, [[7, 8]] * 2, CPU))
        rest.extend(pad([[1, 2, 3], [4]], 0, CPU))
        parts = continue_from(model, rest.prefix(torch.tensor([3, 1])), tail)
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(rows=prompts_strategy)
def test_a_prompt_in_two_pieces_is_the_whole_prompt(
    model: PreTrainedModel, rows: list[tuple[list[int], list[int]]]
) -> None:
    with torch.no_grad():
        begun = prefill(model, [first for first, _ in rows], CPU)
        pieces = prefill(model, [rest for _, rest in rows], CPU, 1, begun)
        whole = prefill(model, [first + rest for first, rest in rows], CPU, 1)
    assert pieces.lengths.tolist() == whole.lengths.tolist()
    assert pieces.summaries is not None
    torch.testing.assert_close(pieces.summaries, whole.summaries, atol=1e-4, rtol=1e-4)
    for got, wanted in zip(pieces.layers, whole.layers, strict=True):
        for row, length in enumerate(whole.lengths.tolist()):
            for one, other in zip(got, wanted, strict=True):
                torch.testing.assert_close(
                    one[row, :, :length], other[row, :, :length], atol=1e-4, rtol=1e-4
                )


def test_a_prefix_is_used_again_without_changing(model: PreTrainedModel) -> None:
    with torch.no_grad():
        prefix = prefill(model, [[7, 8, 9], [11]], CPU)
        before = [(keys.clone(), values.clone()) for keys, values in prefix.layers]
        first = continue_from(model, prefix, torch.tensor([[5, 6], [5, 6]]))
        again = continue_from(model, prefix, torch.tensor([[5, 6], [5, 6]]))
    assert torch.equal(first, again)
    for (keys, values), (old_keys, old_values) in zip(prefix.layers, before, strict=True):
        assert torch.equal(keys, old_keys)
        assert torch.equal(values, old_values)


def test_selected_rows_are_those_rows(model: PreTrainedModel) -> None:
    with torch.no_grad():
        prefix = prefill(model, [[7, 8, 9], [11], [12, 13]], CPU)
        ids = torch.tensor([[5, 6], [7, 8], [9, 10]])
        every = continue_from(model, prefix, ids)
        rows = torch.tensor([2, 0, 2])
        some = continue_from(model, prefix.select(rows), ids.index_select(0, rows))
    torch.testing.assert_close(some, every.index_select(0, rows), atol=1e-5, rtol=1e-5)


def test_prompts_of_no_tokens_give_an_empty_prefix(model: PreTrainedModel) -> None:
    prefix = prefill(model, [[], []], CPU)
    assert prefix.layers == empty_prefix(2, CPU).layers == ()
    assert prefix.width == 0
    assert prefix.select(torch.tensor([1])).lengths.tolist() == [0]


logits_strategy = st.integers(0, 10_000).map(
    lambda seed: torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(seed)) * 4
)
targets_strategy = st.lists(
    st.lists(st.sampled_from([IGNORE, *range(7)]), min_size=4, max_size=4), min_size=2, max_size=2
).map(torch.tensor)


@settings(deadline=None)
@given(logits=logits_strategy, targets=targets_strategy)
def test_demonstration_loss_is_the_mean_over_taught_tokens(
    logits: torch.Tensor, targets: torch.Tensor
) -> None:
    losses = demonstration_loss(logits, targets)
    for row in range(2):
        taught = [t for t in range(4) if targets[row, t] != IGNORE]
        log_probabilities = logits[row].log_softmax(-1)
        each = [-float(log_probabilities[t, targets[row, t]]) for t in taught]
        assert float(losses[row]) == pytest.approx(sum(each) / max(1, len(each)), abs=1e-5)


@settings(deadline=None)
@given(logits=logits_strategy, other=logits_strategy, targets=targets_strategy)
def test_divergence_is_zero_at_home_and_positive_elsewhere(
    logits: torch.Tensor, other: torch.Tensor, targets: torch.Tensor
) -> None:
    reference = logits.log_softmax(-1)
    at_home = divergence(logits, reference, targets)
    torch.testing.assert_close(at_home, torch.zeros(2), atol=1e-5, rtol=0)
    assert bool((divergence(other, reference, targets) >= -1e-5).all())
    moved = divergence(logits + 3.0, reference, targets)  # softmax does not see a constant
    torch.testing.assert_close(moved, torch.zeros(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("given_type", "kept_type"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_losses_are_never_computed_in_16_bits(
    given_type: torch.dtype, kept_type: torch.dtype
) -> None:
    logits, targets = torch.randn(1, 2, 5).to(given_type), torch.tensor([[1, 2]])
    assert demonstration_loss(logits, targets).dtype == kept_type
    assert divergence(logits, logits.to(kept_type).log_softmax(-1), targets).dtype == kept_type
