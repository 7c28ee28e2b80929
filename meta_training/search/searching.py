"""Runs a search: draws settings, has them tried, stops what is behind, keeps what was found.

Knows plans, the study and the trials; knows nothing about samplers, stages or pages.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch

from adapters.config import AdapterError
from meta_training.device import use_device
from meta_training.evaluation.relative import Losses, relative
from meta_training.evaluation.run import ResultsError
from meta_training.exits import exit_code
from meta_training.recipe import Recipe, RecipeError
from meta_training.search.found import Found, best_of, found_of
from meta_training.search.plan import Search, SearchError, Settings, changed, keep_plan, value_of
from meta_training.search.study import Drawn, Study
from meta_training.search.told import Told
from meta_training.search.trials import Trials
from meta_training.tasks.sources import DataError


class Ended(Exception):
    """A trial ends here: ``why`` it failed, or nothing where it was stopped for being behind."""

    def __init__(self, why: str = "") -> None:
        super().__init__(why)
        self.why = why


def search(search: Search, data: Path, folder: Path, threads: int | None, device: str) -> int:
    """Run or resume a search in ``folder``; see ``exit_code`` for what is returned."""
    if threads:
        torch.set_num_threads(threads)

    def work() -> None:
        Searching(search, data, folder, use_device(device)).run()

    return exit_code("search", work, SearchError, ResultsError)


class Searching:
    """One search in its folder."""

    def __init__(self, search: Search, data: Path, folder: Path, device: torch.device) -> None:
        """Do the stages that all trials share, or load them.

        Raises:
            SearchError: ``folder`` has another search.
            DataError, RecipeError, CheckpointError: as of ``Trials``.
        """
        self._search, self._plan, self._folder = search, search.plan, folder
        keep_plan(search, folder)
        self._trials = Trials(search.plan, search.recipe, data, folder, device)
        self._study = Study(search, folder)
        self._reference: Losses = {}

    def run(self) -> None:
        """Go on to the plan's last trial, and tell what was found.

        Raises:
            SearchError: the recipe's own settings diverged.
        """
        try:
            self._try_reference()
            while (number := self._study.finished()) < self._plan.trials:
                self._try_next(number + 1)
                self._tidy()
                self._told().write()
        except KeyboardInterrupt:
            if self._reference:
                told = self._told()
                told.write()
                told.draw()
            raise
        told = self._told(self._judge_best_again())
        told.write()
        told.draw()
        told.print()

    def _try_reference(self) -> None:
        """Trial 0: the recipe's own settings, what all others are relative to."""
        recipe = self._search.recipe
        if not self._study.has_reference:
            _say(f"trial 0: the settings of {recipe.name}")

        def watch(step: int, losses: Losses) -> None:
            if not all(map(math.isfinite, losses.values())):
                raise SearchError(
                    f"the settings of {recipe.name} itself diverged by outer step {step}, so there "
                    "is nothing to compare with: search around a recipe that can be trained"
                )

        if not self._study.has_reference:
            self._trials.train(0, recipe, watch)
        curve = self._trials.curve(0, recipe)
        self._reference = curve.get(recipe.outer.steps, {})
        if not self._reference:
            raise SearchError(
                f"{self._trials.place(0)} has no judgements of the recipe's own settings: take "
                "another --out"
            )
        if not self._study.has_reference:
            scores = {step: relative(of, self._reference).mean for step, of in curve.items()}
            self._study.tell_reference(scores)

    def _try_next(self, number: int) -> None:
        """Train and judge one more trial, or go on with the one that was under way."""
        trial = self._study.next()
        settings = self._study.settings(trial)
        _say(f"trial {number} of {self._plan.trials}: {_listed(settings)}")

        def watch(step: int, losses: Losses) -> None:
            score = relative(losses, self._reference).mean
            if not math.isfinite(score):
                raise Ended(f"diverged by outer step {step}")
            self._study.report(trial, step, score)
            if step < recipe.outer.steps and self._plan.stop != "none" and trial.should_prune():
                raise Ended

        try:
            recipe = changed(self._search.recipe, settings)
            losses = self._trials.train(trial.number, recipe, watch)
        except Ended as ended:
            self._study.tell(trial, None, ended.why)
            _say(f"trial {number} {ended.why or 'stopped: it is behind'}")
        except (RecipeError, AdapterError, DataError) as error:
            self._study.tell(trial, None, str(error))
            _say(f"trial {number} failed: {error}")
        else:
            score = relative(losses, self._reference)
            self._study.tell(trial, score.mean)
            _say(f"trial {number}: {score.mean:.3f} ({score.low:.3f} to {score.high:.3f})")

    def _judge_best_again(self) -> Found | None:
        """The best trial on other validation tasks, which it was not chosen by."""
        best = best_of(self._found())
        if not best.number:
            return None
        recipe = changed(self._search.recipe, best.settings)
        reference = self._trials.judge_again(0, self._search.recipe)
        losses = self._trials.judge_again(best.number, recipe)
        return found_of(best.drawn, {recipe.outer.steps: losses}, reference)

    def _tidy(self) -> None:
        """Only the best trial and the recipe's own settings keep their checkpoints."""
        found = self._found()
        best = best_of(found)
        for each in found:
            if each.number not in (0, best.number):
                self._trials.drop_checkpoint(each.number)

    def _told(self, again: Found | None = None) -> Told:
        return Told(self._search, self._folder, self._found(), again, self._study.importances)

    def _found(self) -> list[Found]:
        """The recipe's own settings and every trial that has ended."""
        own = {name: value_of(self._search.recipe, name) for name in self._search.space}
        drawn = [Drawn(0, "reference", own), *self._study.drawn()]
        return [
            found_of(each, self._curve(each), self._reference)
            for each in drawn
            if each.state != "running"
        ]

    def _curve(self, drawn: Drawn) -> dict[int, Losses]:
        try:
            recipe: Recipe = changed(self._search.recipe, drawn.settings)
        except RecipeError:  # settings that do not go together, which is why it failed
            return {}
        return self._trials.curve(drawn.number, recipe)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _listed(settings: Settings) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in settings.items()
    )
