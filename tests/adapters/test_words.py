"""What a prompt's words say: which words count, and what their sums are worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from adapters.chat import ChatEncoder, user_turn
from adapters.words import (
    SIGNS,
    Words,
    WordsError,
    control_tokens,
    load_words,
    save_words,
    sum_bags,
    token_signs,
)


def make_words(tokenizer: PreTrainedTokenizerFast, width: int = 6) -> Words:
    generator = torch.Generator().manual_seed(0)
    size = len(tokenizer)
    vectors = torch.randn(size, width, generator=generator).half().float()
    weights = (torch.rand(size, generator=generator) + 0.5).half().float()
    return Words(vectors, weights, control_tokens(tokenizer))


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


def test_only_what_was_said_last_counts(tokenizer: PreTrainedTokenizerFast) -> None:
    words, encoder = make_words(tokenizer), ChatEncoder(tokenizer)
    text = "Where is my parcel?"
    alone = tokenizer(text, add_special_tokens=False)["input_ids"]
    before = [*user_turn("What time?"), {"role": "assistant", "content": "At nine."}]
    for messages in (user_turn(text), before + user_turn(text)):
        assert words.last_turn(encoder.prompt(messages).prefix) == alone
        assert words.last_turn(encoder.prompt(messages).ids) != []
    assert words.last_turn(alone) == alone, "a prompt without control tokens is all one turn"
    assert words.last_turn([1, 1]) == words.last_turn([]) == []


def test_bags_are_sums_over_the_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    words = make_words(tokenizer)
    prompts = [[50, 60, 50], [], [70]]
    meanings, tokens = words.bags(prompts)
    assert meanings.shape == (3, 6)
    assert tokens.shape == (3, SIGNS)
    assert words.width == 6 + SIGNS
    for row, prompt in enumerate(prompts):
        meaning = sum((words.vectors[t] for t in prompt), torch.zeros(6))
        torch.testing.assert_close(meanings[row], meaning)
        signs = (torch.from_numpy(token_signs(t)) * words.weights[t] for t in prompt)
        torch.testing.assert_close(tokens[row], sum(signs, torch.zeros(SIGNS)))


def test_signs_keep_tokens_apart_as_exact_bags_would(tokenizer: PreTrainedTokenizerFast) -> None:
    words = make_words(tokenizer)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(20, 290, size=12).tolist() for _ in range(40)]
    exact = torch.zeros(len(prompts), len(tokenizer))
    for row, prompt in enumerate(prompts):
        for token in prompt:
            exact[row, token] += words.weights[token]
    _, hashed = words.bags(prompts)
    pairs = [(i, j) for i in range(40) for j in range(i)]
    errors = [cosine(hashed[i], hashed[j]) - cosine(exact[i], exact[j]) for i, j in pairs]
    assert np.std(errors) < 1.2 / SIGNS**0.5
    assert abs(np.mean(errors)) < 0.01


def test_signs_are_the_same_everywhere() -> None:
    """Sessions keep what is made of them, so another machine must make the same."""
    signs = token_signs(7) * np.float32(SIGNS) ** np.float32(0.5)
    np.testing.assert_allclose(np.abs(signs), 1, rtol=1e-6)
    first = sum(1 << (31 - bit) for bit in range(32) if signs[bit] > 0)
    assert f"{first:08x}" == "7b01eb43"  # printf '\x07\x00\x00\x00' | b2sum


def test_gradients_reach_a_table_through_its_sums() -> None:
    table = torch.ones(4, 2, requires_grad=True)
    sum_bags(table, [[1, 1, 3], [], [3]]).sum().backward()
    assert table.grad is not None
    assert table.grad[:, 0].tolist() == [0, 2, 0, 2]


def test_a_table_comes_back_as_it_was(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    words, path = make_words(tokenizer), tmp_path / "words.safetensors"
    save_words(path, words)
    back = load_words(path, tokenizer, len(tokenizer))
    assert torch.equal(back.vectors, words.vectors)
    assert torch.equal(back.weights, words.weights)
    assert back.control == words.control


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"vectors": (300, 6)}, "missing"),
        ({"vectors": (300, 6), "weights": (300,), "more": (1,)}, "too many"),
        ({"vectors": (200, 6), "weights": (200,)}, r"shape \[200, 6\]"),
        ({"vectors": (300,), "weights": (300,)}, "shape"),
        ({"vectors": (300, 6), "weights": (6, 300)}, "shape"),
    ],
)
def test_a_table_of_another_form_is_refused(
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    tensors: dict[str, tuple[int, ...]],
    message: str,
) -> None:
    path = tmp_path / "words.safetensors"
    save_file({name: torch.ones(shape).half() for name, shape in tensors.items()}, path)
    with pytest.raises(WordsError, match=message):
        load_words(path, tokenizer, 300)


def test_a_broken_table_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "words.safetensors"
    words = make_words(tokenizer)
    words.vectors[3, 3] = torch.inf
    save_words(path, words)
    with pytest.raises(WordsError, match="finite"):
        load_words(path, tokenizer, len(tokenizer))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(WordsError, match="safetensors"):
        load_words(path, tokenizer, len(tokenizer))
    with pytest.raises(WordsError, match="cannot be read"):
        load_words(tmp_path, tokenizer, len(tokenizer))
