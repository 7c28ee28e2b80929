"""Trains and judges the trials of a search from one pre-trained base, each in a folder of its own.

Knows the stages of meta-training and the relative score's losses; knows nothing about how settings
are drawn or compared.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from meta_training.evaluation.relative import Losses, QueryLoss, losses_of
from meta_training.evaluation.run import evaluate, read_results
from meta_training.learner import Learner
from meta_training.pipeline import (
    build_learner,
    build_outer_loop,
    embed_questions,
    open_workshop,
    validation_drawer,
)
from meta_training.recipe import Recipe
from meta_training.record import keep_record
from meta_training.search.plan import Plan

JUDGED: Final = "judged.jsonl"  # a line a task of every judgement
CHECKPOINT: Final = "checkpoint.pt"
AGAIN: Final = "again"  # marks judgements on other tasks than the search's

Watch = Callable[[int, Losses], None]
"""Hears the losses after so many outer steps; what it raises ends the trial."""


class Trials:
    """The trials of a search, by number; 0 has the recipe's own settings."""

    def __init__(
        self, plan: Plan, recipe: Recipe, data: Path, folder: Path, device: torch.device
    ) -> None:
        """Do the stages before the outer loop in ``folder``, or load what an earlier call made.

        They and all trials run on ``device``.

        Raises:
            DataError: the data is missing, broken, or too little for the recipe or the plan's
                cells.
            RecipeError: ``folder`` was made with another recipe.
            CheckpointError: ``folder`` has a checkpoint that does not fit.
        """
        self._plan, self._folder = plan, folder
        keep_record(recipe, folder / "trials", {"inner", "outer"})
        self._workshop = open_workshop(recipe, data, folder, device)
        # A learner leaves hooks on its model, so that every one gets a copy.
        model = copy.deepcopy(self._workshop.model)
        embed_questions(self._workshop, build_learner(replace(self._workshop, model=model)))
        self._start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        corpus, tokenizer = self._workshop.corpus, self._workshop.tokenizer
        self._tasks = validation_drawer(corpus, tokenizer, plan.seed)
        self._others = validation_drawer(corpus, tokenizer, plan.seed + 1)
        for cell in plan.judged:
            self._tasks.draw(cell, 0)

    def place(self, number: int) -> Path:
        """The folder of a trial."""
        return self._folder / "trials" / f"{number:03d}"

    def train(self, number: int, recipe: Recipe, watch: Watch) -> Losses:
        """Train a trial, or go on where it was stopped; its losses on validation tasks in the end.

        Ctrl-C finishes the outer step, saves and raises; the same call goes on from there.

        Raises:
            RecipeError, AdapterError: the recipe cannot be trained.
        """
        learner = self._trained(number, recipe, watch)
        losses = self._judge(number, learner, recipe.outer.steps)
        watch(recipe.outer.steps, losses)
        return losses

    def judge_again(self, number: int, recipe: Recipe) -> Losses:
        """A trained trial's losses on as many other validation tasks."""
        learner = self._trained(number, recipe, lambda step, losses: None)
        return self._judge(number, learner, recipe.outer.steps, again=True)

    def curve(self, number: int, recipe: Recipe) -> dict[int, Losses]:
        """What a trial's judgements have found so far, by outer steps."""
        every, steps = self._every(recipe), recipe.outer.steps
        found: dict[int, Losses] = {}
        for step in sorted({*range(every, steps + 1, every), steps}):
            losses = losses_of(read_results(self.place(number) / JUDGED, str(step)))
            if len(losses) == len(self._plan.judged) * self._plan.tasks:
                found[step] = losses
        return found

    def drop_checkpoint(self, number: int) -> None:
        """Free what a trial takes most room for; its judgements stay."""
        for path in self.place(number).glob(f"*/{CHECKPOINT}"):
            path.unlink()

    def _trained(self, number: int, recipe: Recipe, watch: Watch) -> Learner:
        random.seed(recipe.seed)
        torch.manual_seed(recipe.seed)
        model = copy.deepcopy(self._workshop.model)
        model.load_state_dict(self._start)
        place = self.place(number)
        workshop = replace(self._workshop, recipe=recipe, model=model, folder=place)
        learner = build_learner(workshop)

        def judge(step: int) -> dict[str, float]:
            losses = self._judge(number, learner, step)
            watch(step, losses)
            return {"validation": sum(losses.values()) / len(losses)}

        every = self._every(recipe)
        build_outer_loop(workshop, learner, judge=judge, judged_every=every).run()
        return learner

    def _every(self, recipe: Recipe) -> int:
        """Outer steps between judgements."""
        steps = max(1, recipe.outer.steps)
        return min(self._plan.judge_every or steps, steps)

    def _judge(self, number: int, learner: Learner, step: int, again: bool = False) -> Losses:
        path, of = self.place(number) / JUDGED, f"{step} {AGAIN}" if again else str(step)
        tasks = self._others if again else self._tasks
        plan = self._plan
        evaluate([QueryLoss(learner)], plan.judged, tasks, plan.tasks, path, of, leave=False)
        return losses_of(read_results(path, of))
