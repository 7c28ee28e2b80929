"""The contrastive loss against the same sum in plain Python, and the batches it is given."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spoken import KNOWN, make_spoken
from transformers import PreTrainedTokenizerFast

from adapters.chat import user_turn
from meta_training.contrast import MEAN_LAYERS, QuestionDraws, contrastive_loss, readouts
from meta_training.recipe_parts import EmbedPart
from meta_training.tasks.episodes import kind_of
from meta_training.tasks.sources import DataError, Intent

INTENTS = [
    Intent(source, "d", str(number), tuple(f"{source} {number} {i}" for i in range(5)))
    for source in ("few", "many")
    for number in range(4 if source == "few" else 40)
]
TURNS = [f"this is turn number {number} of them all" for number in range(30)]
PART = EmbedPart(kinds=9, questions_per_kind=3, views=6, left_out=0.5)


def slow(vectors: list[list[float]], kinds: list[str], temperature: float) -> float:
    """Khosla et al. 2020, eq. 2, term by term."""

    def cosine(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.hypot(*a) / math.hypot(*b)

    rows = []
    for i, vector in enumerate(vectors):
        partners = [j for j, kind in enumerate(kinds) if j != i and kind == kinds[i]]
        if not partners:
            continue
        everyone = sum(
            math.exp(cosine(vector, other) / temperature)
            for j, other in enumerate(vectors)
            if j != i
        )
        rows.append(
            -sum(
                math.log(math.exp(cosine(vector, vectors[j]) / temperature) / everyone)
                for j in partners
            )
            / len(partners)
        )
    return sum(rows) / len(rows)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kinds=st.lists(st.sampled_from("abcd"), min_size=2, max_size=9).filter(
        lambda kinds: len(set(kinds)) < len(kinds)
    ),
    temperature=st.sampled_from([0.1, 0.5, 1.0]),
)
def test_it_is_the_sum_written_out(seed: int, kinds: list[str], temperature: float) -> None:
    rng = random.Random(seed)
    vectors = [[rng.gauss(0, 1) for _ in range(4)] for _ in kinds]
    found = contrastive_loss(torch.tensor(vectors, dtype=torch.float64), kinds, temperature)
    assert found.item() == pytest.approx(slow(vectors, kinds, temperature), rel=1e-9)


def test_rows_without_a_partner_only_repel() -> None:
    pair = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    near, far = torch.tensor([[0.8, 0.6]]), torch.tensor([[-1.0, -0.5]])
    losses = [
        contrastive_loss(torch.cat([pair, alone]), ["a", "a", "b"]).item() for alone in (near, far)
    ]
    assert losses[0] > losses[1]


def test_only_directions_count() -> None:
    vectors = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lengths = torch.tensor([[1.0], [9.0], [0.1], [3.0], [2.0]], dtype=torch.float64)
    kinds = ["a", "b", "a", "b", "c"]
    assert contrastive_loss(vectors, kinds).item() == pytest.approx(
        contrastive_loss(vectors * lengths, kinds).item(), rel=1e-9
    )


def test_readouts_are_what_a_model_sees_of_each_prompt_alone(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    learner = make_spoken(tokenizer)
    asked = [question for question, _ in KNOWN]
    prompts = [learner.encoder.prompt(user_turn(question)).prefix for question in asked]
    assert len({len(prompt) for prompt in prompts}) > 1, "padding is never tried"
    with torch.no_grad():
        seen = readouts(learner.model, prompts, learner.summary_layer)
        for row, prompt in enumerate(prompts):
            states = learner.model(
                input_ids=torch.tensor([prompt]), output_hidden_states=True
            ).hidden_states
            expected = [states[learner.summary_layer][0, -1]]
            expected += [states[layer][0, 1:].mean(0) for layer in MEAN_LAYERS]
            for found, wanted in zip(seen, expected, strict=True):
                torch.testing.assert_close(found[row], wanted, rtol=1e-4, atol=1e-5)


@given(seed=st.integers(0, 10**6))
def test_a_batch_has_several_questions_of_each_kind(seed: int) -> None:
    kinds, texts = QuestionDraws(INTENTS, TURNS, PART, random.Random(seed)).kinds()
    assert set(Counter(kinds).values()) == {PART.questions_per_kind}
    assert len(set(kinds)) == PART.kinds
    known = {kind_of(intent): intent.questions for intent in INTENTS}
    assert all(text in known[kind] for kind, text in zip(kinds, texts, strict=True))
    assert len(set(texts)) == len(texts)


@given(seed=st.integers(0, 10**6))
def test_views_are_words_of_one_turn(seed: int) -> None:
    kinds, texts = QuestionDraws(INTENTS, TURNS, PART, random.Random(seed)).views()
    assert set(Counter(kinds).values()) == {2}
    assert len(kinds) == 2 * PART.views
    for text in texts:
        words = text.split()
        assert words
        assert any(set(words) <= set(turn.split()) for turn in TURNS)
    assert sum(len(text.split()) for text in texts) < 8 * len(texts)


def test_no_turns_give_no_views() -> None:
    assert QuestionDraws(INTENTS, [], PART, random.Random(0)).views() == ([], [])


def test_too_few_kinds_are_an_error() -> None:
    with pytest.raises(DataError, match=r"embed\.kinds is 9, but the data has 3"):
        QuestionDraws(INTENTS[:3], TURNS, PART, random.Random(0))
