"""The gate's table of words: rarity as scikit-learn counts it, and vectors that learn kinds."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import PreTrainedTokenizerFast

from adapters.spelling import bucket_of_word, buckets_of
from adapters.words import Words, WordsError, sum_bags
from meta_training.contrast import QuestionDraws
from meta_training.recipe_parts import EmbedPart, WordsPart
from meta_training.tasks.sources import Intent
from meta_training.words import OFTEN, first_vectors, inverse_frequency, train_words

# Two wordings of a kind share no word, so only learned vectors can bring them together.
KINDS = [
    ("where lamp", "place torch"),
    ("can dance", "able jump"),
    ("please print", "want paper"),
    ("thank you", "very kind"),
]
INTENTS = [Intent("few", "d", str(i), texts) for i, texts in enumerate(KINDS)]


def trained(tokenizer: PreTrainedTokenizerFast, path: Path, steps: int = 60) -> Words:
    part = EmbedPart(kinds=4, questions_per_kind=2, views=0)
    draws = QuestionDraws(INTENTS, [], part, random.Random(0))
    embedding = torch.randn(len(tokenizer), 12, generator=torch.Generator().manual_seed(0))
    texts = [text for pair in KINDS for text in pair]
    settings = WordsPart(steps=steps, width=8, learning_rate=3e-2)
    return train_words(embedding, tokenizer, draws, texts, settings, path)


def test_weights_are_those_of_tfidf() -> None:
    texts = [[1, 2, 2], [2, 3], [5, 1, 2], [4]]
    counted = TfidfVectorizer(analyzer=lambda ids: ids)
    counted.fit(texts)
    found = inverse_frequency(texts, 7)
    for token, column in counted.vocabulary_.items():
        assert float(found[token]) == pytest.approx(counted.idf_[column], rel=1e-6)
    assert found[6] == found.max(), "a token that was never seen is the rarest"


def test_words_begin_as_near_as_the_base_sees_them(tokenizer: PreTrainedTokenizerFast) -> None:
    """Of a base that has two directions only, two numbers are enough."""
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(len(tokenizer), 2, generator=generator) @ torch.randn(2, 12)
    words = ["lamp", "torch", "print", "paper"]
    vectors = first_vectors(embedding, tokenizer, [" ".join(words)] * OFTEN, 2, generator)
    tokens = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    seen = torch.stack([embedding[ids].mean(0) for ids in tokens]) - embedding.mean(0)
    found = vectors[[bucket_of_word(word) for word in words]]
    near = torch.nn.functional.cosine_similarity
    for one in range(4):
        for other in range(4):
            expected = near(seen[one], seen[other], dim=0)
            torch.testing.assert_close(near(found[one], found[other], dim=0), expected)
    torch.testing.assert_close(found.norm(dim=1).mean(), torch.tensor(1.0))
    rare = first_vectors(embedding, tokenizer, [" ".join(words)], 2, generator)
    assert float(rare.norm(dim=1).max()) < 0.1, "a word that was seen once may be a slip"


def test_wordings_of_one_kind_come_together(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    def margin(words: Words) -> float:
        spelled = [buckets_of(text) for pair in KINDS for text in pair]
        bags = torch.nn.functional.normalize(sum_bags(words.table, spelled), dim=1)
        cosines = bags @ bags.T
        same = cosines[torch.arange(0, 8, 2), torch.arange(1, 8, 2)]
        others = cosines.masked_fill(torch.block_diag(*[torch.ones(2, 2)] * 4) > 0, -1)
        return float(same.min() - others.max())

    assert margin(trained(tokenizer, tmp_path / "short.safetensors", steps=1)) < 0
    assert margin(trained(tokenizer, tmp_path / "long.safetensors")) > 0.2


def test_a_table_that_is_there_is_taken_over(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = tmp_path / "words.safetensors"
    first = trained(tokenizer, path, steps=2)
    again = trained(tokenizer, path, steps=40)
    assert torch.equal(first.vectors, again.vectors)
    assert torch.equal(first.weights, again.weights)
    assert sorted(tmp_path.iterdir()) == [path]
    path.write_bytes(b"something else")
    with pytest.raises(WordsError, match="no usable table"):
        trained(tokenizer, path)
