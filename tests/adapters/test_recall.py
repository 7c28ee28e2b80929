"""Recall: whole answers of nearest neighbours, mixed into each token's distribution."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.config import Gate, Mix
from adapters.gate import answer_number
from adapters.recall import MOST, PENALTY, SHARE, Disliked, Recall, disliked, recall
from adapters.state import Taught

GATE = Gate(1, 0.5, mix=Mix(0.05, 15.0))
ONE, TWO, LONG = (3, 4, 1), (3, 5, 1), (3, 4, 6, 1)


def taught(*pairs: tuple[tuple[int, ...], tuple[float, float]]) -> Taught:
    keys = torch.nn.functional.normalize(torch.tensor([key for _, key in pairs]), dim=1)
    width = max((len(answer) for answer, _ in pairs), default=1) or 1
    said = torch.full((len(pairs), width), -1)
    for row, (answer, _) in enumerate(pairs):
        said[row, : len(answer)] = torch.tensor(answer, dtype=torch.long)
    numbers = torch.tensor([answer_number(answer) for answer, _ in pairs])
    return Taught(keys, numbers, "view", said)


def test_answers_count_by_how_near_their_prompts_lie() -> None:
    memory = taught((ONE, (1.0, 0.0)), (TWO, (0.0, 1.0)), (ONE, (0.9, 0.1)))
    near_one = recall(GATE, memory, torch.tensor([[1.0, 0.0]]))
    between = recall(GATE, taught((ONE, (1.0, 0.0)), (TWO, (0.0, 1.0))), torch.ones(1, 2) / 2**0.5)
    assert near_one is not None
    assert between is not None
    weights = dict(zip(near_one.answers, near_one.weights, strict=True))
    assert set(weights) == {ONE, TWO}
    assert weights[ONE] > 0.999
    assert between.weights == pytest.approx((0.5, 0.5))


def disliking(memory: Taught, *rows: int) -> Taught:
    answers = memory.answers.clone()
    answers[list(rows)] = ~answers[list(rows)]
    return replace(memory, answers=answers)


def test_what_was_only_disliked_is_remembered_near_its_prompts_and_never_recalled() -> None:
    memory = disliking(
        taught((ONE, (1.0, 0.0)), (TWO, (0.0, 1.0)), (LONG, (1.0, 0.2)), (ONE, (1.0, 0.1))), 0, 2, 3
    )
    found = recall(GATE, memory, torch.tensor([[1.0, 0.0]]))
    assert found is not None
    assert found.answers == (TWO,)
    asked = torch.tensor([[1.0, 0.0]])
    assert disliked(GATE, memory, asked) == [ONE, LONG]
    assert disliked(GATE, memory, torch.tensor([[0.0, 1.0]])) == []
    assert disliked(Gate(1, 0.97), memory, asked) == [ONE, LONG]
    assert disliked(Gate(1, 0.9), memory, torch.tensor([[0.6, 0.8]])) == []
    assert disliked(GATE, replace(memory, completions=None), asked) == []
    every = taught(*(((3, number, 1), (1.0, 0.0)) for number in range(4, 4 + 2 * MOST)))
    kept = disliked(GATE, disliking(every, *range(2 * MOST)), asked)
    assert kept == [(3, number, 1) for number in range(4 + MOST, 4 + 2 * MOST)]
    nothing = disliking(memory.rows(torch.tensor([1])), 0)
    assert recall(GATE, nothing, torch.tensor([[1.0, 0.0]])) is None


def test_a_disliked_answer_is_kept_down_for_as_long_as_it_is_followed() -> None:
    memory = Disliked((ONE, LONG))
    for said, kept_down in (
        ([], {3}),
        ([3], {4}),
        ([3, 4], {1, 6}),
        ([3, 4, 6], {1}),
        ([5], set()),
    ):
        logits = torch.zeros(9)
        memory.mix(logits, said)
        assert {token for token in range(9) if logits[token] != 0} == kept_down, said
        assert all(logits[token] == -PENALTY for token in kept_down)
    logits = torch.zeros(9)
    memory.mix(logits, [*ONE])
    assert not logits.any(), "nothing comes after its end"


def test_nothing_is_remembered_without_answers_or_weights() -> None:
    memory = taught((ONE, (1.0, 0.0)))
    vector = torch.tensor([[1.0, 0.0]])
    assert recall(Gate(1, 0.5), memory, vector) is None
    assert recall(GATE, Taught(memory.keys, memory.answers, "view"), vector) is None


def test_only_answers_that_began_like_this_go_on() -> None:
    memory = Recall((ONE, TWO, LONG), (0.5, 0.3, 0.2))
    assert memory.next_tokens([]) == {3: pytest.approx(1.0)}
    assert memory.next_tokens([3]) == {4: pytest.approx(0.7), 5: pytest.approx(0.3)}
    assert memory.next_tokens([3, 4]) == {1: pytest.approx(0.5), 6: pytest.approx(0.2)}
    assert memory.next_tokens([3, 4, 1]) == {}
    assert memory.next_tokens([7]) == {}


@settings(deadline=None)
@given(seed=st.integers(0, 999), said=st.lists(st.sampled_from([3, 4, 5, 6]), max_size=3))
def test_the_mixture_is_a_distribution(seed: int, said: list[int]) -> None:
    memory = Recall((ONE, TWO, LONG), (0.5, 0.3, 0.2))
    logits = torch.randn(9, generator=torch.Generator().manual_seed(seed)) * 3
    model = logits.softmax(0)
    memory.mix(logits, said)
    known = memory.next_tokens(said)
    probabilities = logits.softmax(0)
    assert float(probabilities.sum()) == pytest.approx(1.0, abs=1e-5)
    rest = 1 - SHARE * sum(known.values())
    for token in range(9):
        expected = rest * float(model[token]) + SHARE * known.get(token, 0.0)
        assert float(probabilities[token]) == pytest.approx(expected, abs=1e-5)


def test_the_model_decides_where_memory_is_torn() -> None:
    memory = Recall((ONE, TWO), (0.5, 0.5))
    logits = torch.zeros(9)
    logits[5] = 2.0
    sure = logits.clone()
    memory.mix(logits, [3])
    Recall((ONE, TWO), (0.95, 0.05)).mix(sure, [3])
    assert int(logits.argmax()) == 5
    assert int(sure.argmax()) == 4
