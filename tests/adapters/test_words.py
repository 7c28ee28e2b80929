"""What a prompt's words say: which words count, and what their sums are worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import random_words
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from adapters.spelling import BUCKETS, buckets_of
from adapters.words import (
    SIGNS,
    WordsError,
    load_words,
    make_words,
    save_words,
    signs_of,
    sum_bags,
)

TEXTS = ("where is my parcel", "", "my shipping, please!", "parcels parcels")


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


def prompts_of(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_bags_are_sums_over_the_words_and_their_pieces(tokenizer: PreTrainedTokenizerFast) -> None:
    words = random_words(tokenizer)
    meanings, apart = words.bags(prompts_of(tokenizer, TEXTS))
    assert meanings.shape == (4, 6)
    assert apart.shape == (4, SIGNS)
    assert words.width == 6 + SIGNS
    for row, text in enumerate(TEXTS):
        buckets = buckets_of(text)
        meaning = sum((words.table[b] for b in buckets), torch.zeros(6))
        torch.testing.assert_close(meanings[row], meaning)
        signs = (torch.from_numpy(signs_of(b)) * words.weights[b] for b in buckets)
        torch.testing.assert_close(apart[row], sum(signs, torch.zeros(SIGNS)))


def test_signs_keep_buckets_apart_as_exact_bags_would() -> None:
    rng = np.random.default_rng(0)
    bags = rng.integers(0, BUCKETS, size=(40, 12))
    weights = rng.random(BUCKETS).astype(np.float32) + 0.5
    exact = torch.zeros(len(bags), BUCKETS)
    hashed = torch.zeros(len(bags), SIGNS)
    for row, bag in enumerate(bags):
        for bucket in bag.tolist():
            exact[row, bucket] += float(weights[bucket])
            hashed[row] += torch.from_numpy(signs_of(bucket)) * float(weights[bucket])
    pairs = [(i, j) for i in range(40) for j in range(i)]
    errors = [cosine(hashed[i], hashed[j]) - cosine(exact[i], exact[j]) for i, j in pairs]
    assert np.std(errors) < 1.2 / SIGNS**0.5
    assert abs(np.mean(errors)) < 0.01


def test_signs_are_the_same_everywhere() -> None:
    """Sessions keep what is made of them, so another machine must make the same."""
    signs = signs_of(7) * np.float32(SIGNS) ** np.float32(0.5)
    np.testing.assert_allclose(np.abs(signs), 1, rtol=1e-6)
    first = sum(1 << (31 - bit) for bit in range(32) if signs[bit] > 0)
    assert f"{first:08x}" == "7b01eb43"  # printf '\x07\x00\x00\x00' | b2sum


def test_gradients_reach_a_table_through_its_sums() -> None:
    table = torch.ones(4, 2, requires_grad=True)
    sum_bags(table, [[1, 1, 3], [], [3]]).sum().backward()
    assert table.grad is not None
    assert table.grad[:, 0].tolist() == [0, 2, 0, 2]


def test_what_is_stored_is_near_what_was_learned(tokenizer: PreTrainedTokenizerFast) -> None:
    vectors = torch.randn(BUCKETS, 6, generator=torch.Generator().manual_seed(0))
    vectors[3] = 0
    words = make_words(vectors, torch.ones(BUCKETS), tokenizer)
    assert words.vectors.dtype == torch.int8
    furthest = (words.table - vectors).abs().amax(1)
    assert bool((furthest <= vectors.abs().amax(1) / 127 * 0.5001).all())


def test_a_table_comes_back_as_it_was(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    words, path = random_words(tokenizer), tmp_path / "words.safetensors"
    save_words(path, words)
    back = load_words(path, tokenizer)
    assert torch.equal(back.vectors, words.vectors)
    assert torch.equal(back.factors, words.factors)
    assert torch.equal(back.weights, words.weights)
    assert back.digest == words.digest
    assert back.digest != random_words(tokenizer, seed=1).digest


def test_a_table_of_tokens_says_how_to_make_a_new_one(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = tmp_path / "words.safetensors"
    save_file({"vectors": torch.ones(300, 6).half(), "weights": torch.ones(300).half()}, path)
    with pytest.raises(WordsError, match="run innerloop meta-train again"):
        load_words(path, tokenizer)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"vectors": (BUCKETS, 6), "factors": (BUCKETS,)}, "missing"),
        (
            {
                "vectors": (BUCKETS, 6),
                "factors": (BUCKETS,),
                "weights": (BUCKETS,),
                "more": (1,),
            },
            "too many",
        ),
        ({"vectors": (200, 6), "factors": (200,), "weights": (200,)}, r"shape \[200, 6\]"),
        ({"vectors": (BUCKETS,), "factors": (BUCKETS,), "weights": (BUCKETS,)}, "shape"),
        ({"vectors": (BUCKETS, 6), "factors": (6,), "weights": (BUCKETS,)}, "shape"),
    ],
)
def test_a_table_of_another_form_is_refused(
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    shapes: dict[str, tuple[int, ...]],
    message: str,
) -> None:
    path = tmp_path / "words.safetensors"
    tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
    save_file(tensors | {"vectors": tensors["vectors"].to(torch.int8)}, path)
    with pytest.raises(WordsError, match=message):
        load_words(path, tokenizer)


def test_a_broken_table_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "words.safetensors"
    words = random_words(tokenizer)
    words.weights[3] = torch.inf
    save_words(path, words)
    with pytest.raises(WordsError, match="finite"):
        load_words(path, tokenizer)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(WordsError, match="safetensors"):
        load_words(path, tokenizer)
    with pytest.raises(WordsError, match="cannot be read"):
        load_words(tmp_path, tokenizer)
