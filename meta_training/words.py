"""The gate's table of words: vectors by the contrastive loss on bags of them, weights by rarity.

A minute after the outer loop, apart from the model: a table without a model cannot learn the
training's intents by heart. Knows texts and a tokenizer; knows nothing about adapters or episodes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from adapters.spelling import BUCKETS, bucket_of_word, buckets_of, words_of
from adapters.words import Words, load_words, make_words, save_words, sum_bags
from meta_training.contrast import QuestionDraws, contrastive_loss
from meta_training.pretrain import cosine
from meta_training.recipe_parts import WordsPart
from meta_training.tokenizer import token_ids

PIECE_SPREAD: Final = 0.003  # standard deviation of the numbers of what the base has no vector for
OFTEN: Final = 3  # occurrences from which on a word begins with the base's vector
LEFT_OUT: Final = 0.1  # share of the buckets that a step does not see


def train_words(
    embedding: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    draws: QuestionDraws,
    texts: Sequence[str],
    part: WordsPart,
    path: Path,
) -> Words:
    """The table at ``path``, or train it and keep it there; a stopped run begins again.

    It is small, and trained on the CPU wherever the base is.

    Args:
        embedding: (V, D) the base's vectors of tokens, which words begin with.
        draws: batches of questions of the same kind.
        texts: what weights are counted on; a bucket weighs the logarithm of its rarity.

    Raises:
        WordsError: ``path`` holds something else.
    """
    if path.exists():
        return load_words(path, tokenizer)
    spelled = [buckets_of(text) for text in texts]
    weights = inverse_frequency(spelled, BUCKETS)
    generator = torch.Generator().manual_seed(0)
    vectors = nn.Parameter(first_vectors(embedding, tokenizer, texts, part.width, generator))
    optimizer = torch.optim.Adam([vectors], lr=part.learning_rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: cosine(step, part.steps, min(50, part.steps // 10))
    )
    progress = tqdm(range(part.steps), desc="words")
    for _ in progress:
        table = vectors * weights.unsqueeze(1)
        losses = [
            contrastive_loss(sum_bags(table, _thinned(batch, generator)), kinds)
            for kinds, batch in (draws.kinds(), draws.views())
            if batch
        ]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.set_postfix(contrast=f"{loss.item():.3f}")
    partial = path.with_suffix(".partial")
    save_words(partial, make_words(vectors * weights.unsqueeze(1), weights, tokenizer))
    partial.replace(path)
    return load_words(path, tokenizer)


def first_vectors(
    embedding: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    width: int,
    generator: torch.Generator,
) -> Tensor:
    """(N, W) what buckets begin with: a known word with the mean of its tokens' vectors.

    Of these, the ``width`` directions in which they differ most are kept, at a mean length of 1.
    Buckets that no word fell into begin near nothing; of words that share one, the more frequent
    one has it.
    """
    vectors = torch.randn(BUCKETS, width, generator=generator) * PIECE_SPREAD
    counts = Counter(word for text in texts for word in words_of(text))
    words = [word for word, count in counts.most_common() if count >= OFTEN]
    if not words:
        return vectors
    tokens = token_ids([f" {word}" for word in words], tokenizer)
    known = embedding.detach().float().cpu()
    seen = torch.stack([known[ids].mean(0) for ids in tokens]) - known.mean(0)  # (words, D)
    main = torch.linalg.svd(seen, full_matrices=False).Vh[:width]
    seen = seen @ main.T / seen.norm(dim=1).mean().clamp(min=1e-6)
    places = torch.tensor([bucket_of_word(word) for word in words])
    for place, vector in zip(places.flip(0).tolist(), seen.flip(0), strict=True):
        vectors[place, : len(main)] = vector
    return vectors


def _thinned(texts: Sequence[str], generator: torch.Generator) -> list[list[int]]:
    """The buckets of each text but for a share of them, so that none is relied on alone."""
    thinned = []
    for text in texts:
        buckets = buckets_of(text)
        kept = torch.rand(len(buckets), generator=generator) >= LEFT_OUT
        thinned.append([b for b, keep in zip(buckets, kept.tolist(), strict=True) if keep])
    return thinned


def inverse_frequency(texts: Sequence[Sequence[int]], numbers: int) -> Tensor:
    """(V,) 1 + ln((1 + N) / (1 + n)) with n of N texts that have the number, as in TF-IDF."""
    counts = Counter(number for text in texts for number in set(text))
    have = torch.tensor([counts[number] for number in range(numbers)])
    return 1 + math.log(1 + len(texts)) - torch.log(1.0 + have)
