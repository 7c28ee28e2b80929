"""Stage two, the outer loop: the base, session_init and the inner rule learn to adapt. Resumable.

Knows the recipe and the algorithms; knows nothing about how episodes are drawn or reported.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from meta_training.algorithms.agreement import agreement, give_gradient, take_gradient
from meta_training.algorithms.choice import choose
from meta_training.algorithms.episodes import Judged
from meta_training.checkpoint import (
    Draws,
    Stateful,
    load_checkpoint,
    save_checkpoint,
    whole_steps,
)
from meta_training.contrast import contrastive_loss
from meta_training.language import LanguageEpisodes, lay_out
from meta_training.learner import Learner
from meta_training.pretrain import TextRows, cosine, language_loss
from meta_training.recipe_parts import OuterPart
from meta_training.tasks.batches import Batch, UnrelatedPool
from meta_training.tasks.sampler import EpisodeSampler
from meta_training.team import ALONE, Team

POOL_RENEWED_EVERY = 25  # outer steps between two answers of the untaught model to its pool
SAVED_EVERY = 100
JUDGED_EVERY = 250
# Inner steps an outer step trains through: K, often fewer (cheaper, and early steps count),
# sometimes more, so that reusing the last sizes stays stable.
STEP_OFFSETS = ((0, 0.5), (-2, 0.4), (3, 0.1))


@dataclass
class Moving:
    """Moving averages of what an outer step reports."""

    values: dict[str, float]

    def update(self, name: str, value: float) -> None:
        """Take a new value in."""
        before = self.values.get(name, value)
        self.values[name] = 0.95 * before + 0.05 * value

    def state_dict(self) -> dict[str, Any]:
        """The averages so far."""
        return {"values": dict(self.values)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from earlier averages."""
        self.values = dict(state_dict["values"])


class OuterLoop:
    """The outer optimisation of one learner."""

    def __init__(
        self,
        learner: Learner,
        sampler: EpisodeSampler,
        pool: UnrelatedPool,
        texts: TextRows,
        part: OuterPart,
        folder: Path,
        seed: int,
        judge: Callable[[int], dict[str, float]] | None = None,
        team: Team = ALONE,
        judged_every: int = JUDGED_EVERY,
    ) -> None:
        """Keep checkpoints and ``progress.jsonl`` in ``folder``.

        ``judge`` is called with the number of steps done, every ``judged_every`` of them and after
        the last; what it raises ends the run.

        Of a ``team`` the leader does both; the batches of a step are shared out over it.
        """
        self._team = team
        self.learner = learner
        self._sampler = sampler
        self._pool = pool
        self._texts = texts
        self._part = part
        self._folder = folder
        self._algorithm = choose(part)
        self._rng = random.Random(seed)
        self._judge = judge
        self._judged_every = judged_every
        self._optimizer = torch.optim.AdamW(
            [
                {
                    "params": [p for p in learner.model.parameters() if p.requires_grad],
                    "lr": part.base_learning_rate,
                },
                {"params": list(learner.adapter), "lr": part.adapter_learning_rate},
                {
                    "params": [
                        learner.log_sizes,
                        learner.log_anchor_weight,
                        *learner.log_factors,
                    ],
                    "lr": part.step_size_learning_rate,
                },
            ],
            weight_decay=0.0,
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: cosine(step, part.steps, part.warmup_steps)
        )

    def run(self) -> bool:
        """Go on to the last step; Ctrl-C finishes the step, saves and raises.

        The same call goes on from there, on a CPU bit for bit as if it had never stopped.

        Returns:
            Whether there was anything left to do.

        Raises:
            CheckpointError: the checkpoint in the folder does not fit.
        """
        moving = Moving({})
        parts, draws = self._parts(), self._draws(moving)
        path = self._folder / "checkpoint.pt"
        resumed = load_checkpoint(path, parts, draws)
        done = resumed.step
        if not resumed.exact:
            self._rng.seed(f"{self._rng.random()}-{done}")
            self._pool.renew(self._rng)
        progress = tqdm(
            range(done, self._part.steps),
            initial=done,
            total=self._part.steps,
            desc="meta-train",
            disable=not self._team.leads,
        )
        with whole_steps(in_team=self._team.size > 1) as stop:
            for step in progress:
                if step % POOL_RENEWED_EVERY == 0:
                    self._pool.renew(self._rng)
                self._step(moving, step / self._part.steps)
                done = step + 1
                progress.set_postfix({k: f"{v:.3f}" for k, v in moving.values.items()})
                stopping = self._team.any(stop.is_set())
                saved = done % SAVED_EVERY == 0 or done == self._part.steps or stopping
                if saved and self._team.leads:
                    save_checkpoint(path, parts, draws, done)
                due = done % self._judged_every == 0 or done == self._part.steps
                if due and self._team.leads:
                    self._report(done, moving)
                if stopping or (saved and self._team.size == 1 and stop.is_set()):
                    raise KeyboardInterrupt
        return resumed.step < self._part.steps

    @property
    def has_moved(self) -> bool:
        """Whether any step was taken, in this call or before; without finite gradients none is."""
        return bool(self._optimizer.state)

    def _parts(self) -> dict[str, Stateful]:
        return {
            "learner": self.learner,
            "optimizer": self._optimizer,
            "schedule": self._schedule,
        }

    def _draws(self, moving: Moving) -> dict[str, Stateful]:
        hard = self._sampler.difficulty
        return {
            "loop": Draws(self._rng),
            "texts": self._texts,
            "pool": self._pool,
            "moving": moving,
            **({} if hard is None else {"difficulty": hard}),
        }

    def _step(self, moving: Moving, progress: float) -> None:
        part = self._part
        learned = [p for p in self.learner.parameters() if p.requires_grad]
        apart: list[Tensor] = []
        self._optimizer.zero_grad()
        for number in range(part.batches):
            # Drawn by every process, so that all of them draw alike ever after.
            batch, steps = self._sampler.batch(self._rng), self._inner_steps()
            texts = self._texts.batch(part.language_rows)
            if self._team.has(number):
                self._backward(batch, steps, texts, progress, moving)
                if part.selection == "agreement":
                    apart.append(take_gradient(learned))
        if apart:
            gradients = torch.stack(apart)
            give_gradient(learned, agreement(gradients) @ gradients)
        else:
            self._team.average(learned, part.batches)
        norm = torch.nn.utils.clip_grad_norm_(self.learner.parameters(), part.clip)
        skipped = not math.isfinite(float(norm))
        if not skipped:
            self._optimizer.step()
        moving.update("skipped", float(skipped))
        self._schedule.step()

    def _backward(
        self, batch: Batch, steps: int, texts: Tensor, progress: float, moving: Moving
    ) -> None:
        """Add a batch's gradients to those that are there."""
        episodes = lay_out(self.learner, batch, self._part.locality_weight)
        prototype, language, aside = self._aside(episodes, texts)
        judged = self._algorithm.backward(episodes, steps, progress, aside)
        beside = {"con": prototype.item(), "lm": language.item()}
        self._note(moving, batch.family, judged, beside)
        if self._sampler.difficulty is not None and judged.rows is not None:
            self._sampler.difficulty.note(batch.query_kinds, judged.rows.tolist())

    def _aside(
        self, episodes: LanguageEpisodes, texts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The contrastive and the language loss, and their weighted sum where the base learns."""
        part, batch = self._part, episodes.batch
        learns = part.base != "frozen"
        with torch.set_grad_enabled(learns):
            prototype = contrastive_loss(episodes.embeddings, batch.kinds)
            language = language_loss(self.learner.model, texts)
        aside = part.prototype_weight * prototype + part.language_weight * language
        return prototype, language, aside if learns else None

    def _inner_steps(self) -> int:
        if not self._algorithm.takes_steps:
            return 0
        offsets, weights = zip(*STEP_OFFSETS, strict=True)
        offset = self._rng.choices(offsets, weights)[0]
        return max(1, self.learner.part.steps + int(offset))

    @staticmethod
    def _note(moving: Moving, family: str, judged: Judged, beside: dict[str, float]) -> None:
        short = {"label": "lab", "house_reply": "rep", "persona": "per"}.get(family, family)
        names = {
            "query": short,
            "exact": f"{short}_ok",
            "locality": "kl",
            "changed": f"{short}_chg",
        }
        for figure, name in names.items():
            if figure in judged.figures:
                moving.update(name, judged.figures[figure])
        for name, value in beside.items():
            moving.update(name, value)

    def _report(self, done: int, moving: Moving) -> None:
        row: dict[str, float] = {"step": done, "time_s": time.time(), **moving.values}
        if self._judge is not None:
            row |= self._judge(done)
        told = {name: value if math.isfinite(value) else None for name, value in row.items()}
        with (self._folder / "progress.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")  # JSON has no NaN
