"""The outer loop of a classifier: any learner, any algorithm, episodes from anywhere.

Knows learners and algorithms; nothing about texts. What `train` is for causal LMs, without its
pools and text rows.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from threading import Event

import torch
from torch import Tensor
from tqdm import tqdm

from adapters.config import SpecError
from adapters.inner_loop import descend
from adapters.state import Tensors
from meta_training.algorithms.choice import choose
from meta_training.algorithms.episodes import Judged
from meta_training.checkpoint import (
    Draws,
    Stateful,
    load_checkpoint,
    save_checkpoint,
    whole_steps,
)
from meta_training.classifier import Classifier, Labelled, lay_out_classes
from meta_training.pretrain import cosine
from meta_training.recipe_parts import OuterPart

SAVED_EVERY = 100  # outer steps
Draw = Callable[[random.Random], tuple[Labelled, Labelled]]


def train_classifier(
    learner: Classifier,
    draw: Draw,
    part: OuterPart,
    seed: int = 0,
    checkpoint: Path | None = None,
) -> list[dict[str, float]]:
    """Take ``part.steps`` outer steps on batches of ``draw``, with a progress bar at a terminal.

    With a ``checkpoint`` Ctrl-C finishes the step, saves and raises, and the same call goes on from
    there, on a CPU bit for bit; without one it raises at once.

    Of ``part`` count algorithm and its options, steps, learning rates, warm-up, clip, and whether
    the base is frozen. In a base that is LoRA's (``add_base_lora``) the rest is frozen already.

    Returns:
        The figures of every outer step.

    Raises:
        SpecError: ``learner`` is not of the kind that the algorithm learns.
        CheckpointError: ``checkpoint`` does not fit.
        KeyboardInterrupt: Ctrl-C.
    """
    _check_kind(learner, part.algorithm)
    if part.base == "frozen":
        learner.model.requires_grad_(False)
    algorithm, rng = choose(part), random.Random(seed)
    base = [p for p in learner.base_parameters() if p.requires_grad]
    groups = [
        (base, part.base_learning_rate),
        (list(learner.adapter), part.adapter_learning_rate),
        ([learner.log_sizes, *learner.log_factors], part.step_size_learning_rate),
    ]
    optimizer = torch.optim.AdamW(
        [{"params": own, "lr": rate} for own, rate in groups if own], weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: cosine(step, part.steps, part.warmup_steps)
    )
    learned = [parameter for own, _ in groups for parameter in own]
    figures = Figures()
    parts: dict[str, Stateful] = {
        "learner": learner,
        "optimizer": optimizer,
        "schedule": schedule,
        "figures": figures,
    }
    draws: dict[str, Stateful] = {"draws": Draws(rng)}
    done = 0 if checkpoint is None else load_checkpoint(checkpoint, parts, draws).step
    bar = tqdm(
        range(done, part.steps), initial=done, total=part.steps, desc="outer steps", disable=None
    )
    with nullcontext(Event()) if checkpoint is None else whole_steps() as stop:
        for step in bar:
            episodes = lay_out_classes(learner, *draw(rng))
            optimizer.zero_grad()
            judged = algorithm.backward(episodes, learner.part.steps, step / part.steps)
            norm = torch.nn.utils.clip_grad_norm_(learned, part.clip)
            if math.isfinite(float(norm)):
                optimizer.step()
            schedule.step()
            figures.found.append(dict(judged.figures))
            last = step + 1 == part.steps or stop.is_set()
            if checkpoint is not None and (last or (step + 1) % SAVED_EVERY == 0):
                save_checkpoint(checkpoint, parts, draws, step + 1)
            if stop.is_set():
                raise KeyboardInterrupt
    return figures.found


def _check_kind(learner: Classifier, algorithm: str) -> None:
    """Two algorithms are MAML over another form of inner rule, which the learner has to have."""
    wrong = ""
    if algorithm == "meta-sgd" and not learner.log_factors:
        wrong = "learns a size for each element: make the learner with InnerPart(sizes='element')"
    elif algorithm == "anil" and not learner.stays_in_part:
        wrong = (
            "moves a small part alone: make the learner with InnerPart(top_layers=1), or name the "
            "head in `moving` of a WeightClassifier"
        )
    elif algorithm == "in-context":
        wrong = "puts examples into a prompt, which a classifier does not have: take another one"
    if wrong:
        raise SpecError(f"outer.algorithm: {algorithm} {wrong}")


class Figures:
    """The figures of every outer step so far, as a part of a checkpoint."""

    def __init__(self) -> None:
        """Begin with none."""
        self.found: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, list[dict[str, float]]]:
        """Those that are there."""
        return {"found": list(self.found)}

    def load_state_dict(self, state_dict: dict[str, list[dict[str, float]]]) -> None:
        """Go on after those."""
        self.found = list(state_dict["found"])


def adapt_classifier(
    learner: Classifier, support: Labelled, query: Labelled, steps: int
) -> tuple[Tensors, Judged]:
    """The adapted tensors of each episode, stacked, and how they do on the queries."""
    episodes = lay_out_classes(learner, support, query)
    tensors: Tensors = {name: tensor.detach() for name, tensor in episodes.start.items()}
    rule = learner.inner_rule()
    for step in range(steps):
        sizes = {name: size.detach() for name, size in rule.sizes_at(step).items()}
        tensors, _ = descend(episodes.support_losses, tensors, sizes, rule.clip)
    with torch.no_grad():
        return tensors, episodes.judge(tensors)


def classify(learner: Classifier, tensors: Tensors, rows: Labelled) -> Tensor:
    """(B,) the class of each input, by its episode's adapted tensors."""
    with torch.no_grad():
        return learner.logits(tensors, rows.to(learner.device)).argmax(-1)
