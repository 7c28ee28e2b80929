"""The gate's table of words: vectors by the contrastive loss on bags of tokens, weights by rarity.

Two minutes after the outer loop, apart from the model: a table without a model cannot learn the
training's intents by heart. Knows texts and a tokenizer; knows nothing about adapters or episodes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from adapters.words import Words, control_tokens, load_words, save_words, sum_bags
from meta_training.contrast import QuestionDraws, contrastive_loss
from meta_training.pretrain import cosine
from meta_training.recipe import WordsPart
from meta_training.tokenizer import token_ids

FIRST_SPREAD = 0.1  # standard deviation of the vectors' numbers at the start


def train_words(
    start: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    draws: QuestionDraws,
    questions: Sequence[str],
    part: WordsPart,
    path: Path,
) -> Words:
    """The table at ``path``, or train it and keep it there; a stopped run begins again.

    Args:
        start: (V, W) vectors to begin with, as the base's input embeddings; trained where they are.
        draws: batches of questions of the same kind.
        questions: what weights are counted on; a token weighs the logarithm of its rarity.

    Raises:
        WordsError: ``path`` holds something else.
    """
    if path.exists():
        return load_words(path, tokenizer, len(start))
    vectors = nn.Parameter(start.detach().float() * (FIRST_SPREAD / start.float().std()))
    optimizer = torch.optim.Adam([vectors], lr=part.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: cosine(step, part.steps, 0)
    )
    progress = tqdm(range(part.steps), desc="words")
    for _ in progress:
        losses = [
            contrastive_loss(sum_bags(vectors, token_ids(texts, tokenizer)), kinds)
            for kinds, texts in (draws.kinds(), draws.views())
            if texts
        ]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.set_postfix(contrast=f"{loss.item():.3f}")
    weights = inverse_frequency(token_ids(questions, tokenizer), len(start))
    partial = path.with_suffix(".partial")
    save_words(partial, Words(vectors.detach().cpu(), weights, control_tokens(tokenizer)))
    partial.replace(path)
    return load_words(path, tokenizer, len(start))


def inverse_frequency(texts: Sequence[Sequence[int]], vocabulary: int) -> Tensor:
    """(V,) 1 + ln((1 + N) / (1 + n)) with n of N texts that have the token, as in TF-IDF."""
    counts = Counter(token for text in texts for token in set(text))
    have = torch.tensor([counts[token] for token in range(vocabulary)])
    return 1 + math.log(1 + len(texts)) - torch.log(1.0 + have)
