"""Stage between pre-training and the outer loop: questions that want the same answer move together.

The adapter's few steps can only tell questions apart by what the base says about them, and a
contrastive pass over known intents buys that at a fraction of an outer step's cost. Knows the
corpus and a learner; knows nothing about episodes. Resumable.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tqdm import tqdm

from adapters.chat import user_turn
from meta_training.algorithms.maml import contrastive_loss
from meta_training.checkpoint import (
    Draws,
    Stateful,
    load_checkpoint,
    save_checkpoint,
    whole_steps,
)
from meta_training.corpus import Corpus
from meta_training.learner import Learner
from meta_training.pretrain import TextRows, cosine, language_loss
from meta_training.recipe import EmbedPart
from meta_training.tasks.families import kind_of
from meta_training.tasks.sources import DataError

SAVED_EVERY = 100


def embed(
    learner: Learner, corpus: Corpus, texts: TextRows, part: EmbedPart, path: Path, seed: int
) -> None:
    """Train the learner's base, or take up at ``path`` where an earlier call stopped.

    Ctrl-C finishes the step and saves; the same call goes on from there, bit for bit on a CPU.

    Raises:
        CheckpointError: ``path`` does not fit.
        DataError: the data has fewer kinds of question than a step needs.
    """
    optimizer = torch.optim.AdamW(learner.model.parameters(), lr=part.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: cosine(step, part.steps, part.warmup_steps)
    )
    parts: dict[str, Stateful] = {
        "model": learner.model,
        "optimizer": optimizer,
        "schedule": schedule,
    }
    rng = random.Random(f"{seed}-0")
    draws: dict[str, Stateful] = {"questions": Draws(rng), "texts": texts}
    resumed = load_checkpoint(path, parts, draws)
    done = resumed.step
    if not resumed.exact:  # at least no draws a second time
        rng.seed(f"{seed}-{done}")
    questions = _Questions(corpus, part, rng)
    progress = tqdm(range(done, part.steps), initial=done, total=part.steps, desc="embed")
    with whole_steps() as stop:
        for step in progress:
            kinds, texts_drawn = questions.draw()
            prompts = [learner.encoder.prompt(user_turn(text)).prefix for text in texts_drawn]
            contrast = contrastive_loss(learner.prefill(prompts)[1], kinds)
            language = language_loss(learner.model, texts.batch(part.language_rows))
            optimizer.zero_grad()
            (contrast + language).backward()
            torch.nn.utils.clip_grad_norm_(learner.model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            done = step + 1
            progress.set_postfix(contrast=f"{contrast.item():.3f}", lm=f"{language.item():.3f}")
            if done % SAVED_EVERY == 0 or done == part.steps:
                save_checkpoint(path, parts, draws, done)
            if stop.is_set():
                save_checkpoint(path, parts, draws, done)
                raise KeyboardInterrupt


class _Questions:
    """Batches of questions, several kinds from few sources, so that negatives are hard."""

    def __init__(self, corpus: Corpus, part: EmbedPart, rng: random.Random) -> None:
        self._rng = rng
        self._part = part
        self._pools: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
        for intent in corpus.train_intents:
            self._pools.setdefault(intent.source, []).append((kind_of(intent), intent.questions))
        self._pools["persona"] = [
            (f"persona/persona/{group.group}", group.questions) for group in corpus.train_personas
        ]
        self._pools = {name: pool for name, pool in self._pools.items() if pool}
        have = sum(len(pool) for pool in self._pools.values())
        if have < part.kinds:
            raise DataError(
                f"the recipe's embed.kinds is {part.kinds}, but the data has {have} kinds of "
                "question"
            )

    def draw(self) -> tuple[list[str], list[str]]:
        """Kinds and questions, ``kinds`` x ``questions_per_kind`` of them."""
        names = list(self._pools)
        weights = [len(self._pools[name]) ** 0.7 for name in names]
        share = max(1, self._part.kinds // 3)
        groups: dict[str, tuple[str, ...]] = {}
        while len(groups) < self._part.kinds:
            pool = self._pools[self._rng.choices(names, weights)[0]]
            groups.update(self._rng.sample(pool, min(len(pool), share)))
        kinds, texts = [], []
        for kind, questions in list(groups.items())[: self._part.kinds]:
            chosen = self._rng.sample(questions, min(self._part.questions_per_kind, len(questions)))
            kinds += [kind] * len(chosen)
            texts += chosen
        return kinds, texts
