"""Stage between pre-training and the outer loop: questions that want the same answer move together.

The adapter's few steps can only tell questions apart by what the base says about them, and a
contrastive pass over known intents buys that at a fraction of an outer step's cost. Knows intents,
texts and a learner; knows nothing about episodes. Resumable.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from adapters.chat import user_turn
from meta_training.checkpoint import (
    Draws,
    Stateful,
    load_checkpoint,
    save_checkpoint,
    whole_steps,
)
from meta_training.contrast import QuestionDraws, contrastive_loss, readouts
from meta_training.device import bfloat16_products
from meta_training.learner import Learner
from meta_training.pretrain import TextRows, cosine, language_loss
from meta_training.recipe_parts import EmbedPart
from meta_training.tasks.sources import Intent

SAVED_EVERY = 100


def embed(
    learner: Learner,
    intents: Sequence[Intent],
    turns: Sequence[str],
    texts: TextRows,
    part: EmbedPart,
    path: Path,
    seed: int,
) -> None:
    """Train the learner's base, or take up at ``path`` where an earlier call stopped.

    Questions of one of ``intents`` attract each other, and so do two views of one of ``turns``.
    Ctrl-C finishes the step and saves; a second call goes on, bit for bit on the same CPU.

    Raises:
        CheckpointError: ``path`` does not fit.
        DataError: there are fewer intents than a step needs.
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
    questions = QuestionDraws(intents, turns, part, rng)
    progress = tqdm(range(done, part.steps), initial=done, total=part.steps, desc="embed")
    with whole_steps() as stop:
        for step in progress:
            with bfloat16_products(learner.device):
                contrast = _contrast(learner, *questions.kinds())
                views = _contrast(learner, *questions.views())
                language = language_loss(learner.model, texts.batch(part.language_rows))
            optimizer.zero_grad()
            (contrast + views + language).backward()
            torch.nn.utils.clip_grad_norm_(learner.model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            done = step + 1
            progress.set_postfix(
                contrast=f"{contrast.item():.3f}",
                views=f"{views.item():.3f}",
                lm=f"{language.item():.3f}",
            )
            if done % SAVED_EVERY == 0 or done == part.steps:
                save_checkpoint(path, parts, draws, done)
            if stop.is_set():
                save_checkpoint(path, parts, draws, done)
                raise KeyboardInterrupt


def _contrast(learner: Learner, kinds: list[str], questions: list[str]) -> Tensor:
    if not questions:
        return torch.zeros((), device=learner.device)
    prompts = [learner.encoder.prompt(user_turn(question)).prefix for question in questions]
    seen = readouts(learner.model, prompts, learner.summary_layer)
    return torch.stack([contrastive_loss(vectors, kinds) for vectors in seen]).sum()
