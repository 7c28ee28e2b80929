"""Tells what a search has found: lines, the best recipe, a table and a page.

Knows trials and their scores; knows nothing about how they were had.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from meta_training.data.rows import replace_text
from meta_training.evaluation.page import Plot, fill
from meta_training.evaluation.relative import Apart, Relative, apart
from meta_training.recipe import Recipe
from meta_training.search.found import Found, ranked
from meta_training.search.plan import Search, changed
from meta_training.search.plots import curves_figure, settings_figure, trials_figure

TRIALS: Final = "trials.jsonl"
BEST: Final = "best.yaml"
PAGE: Final = "search.html"
TEMPLATE: Final = Path(__file__).with_name("search.html")
STATES: Final = {"reference": "the recipe's own", "complete": "", "stopped": "stopped early"}


@dataclass(frozen=True)
class Told:
    """What is told of a search in its folder.

    ``found``: the recipe's own settings and the trials that have ended. ``again``: the best trial
    on other tasks than the search's. ``importances``: share of the scores' variance by field.
    """

    search: Search
    folder: Path
    found: Sequence[Found]
    again: Found | None
    importances: Callable[[], Mapping[str, float]]

    def write(self) -> None:
        """Write every trial as a line, and the best recipe."""
        lines = [json.dumps(each.line(), allow_nan=False) + "\n" for each in self.found]
        replace_text(self.folder / TRIALS, "".join(lines))
        content = yaml.safe_dump(self._best_recipe().model_dump(mode="json"), sort_keys=False)
        replace_text(self.folder / BEST, f"# {self.verdict()[0]}\n{content}")

    def draw(self) -> None:
        """Write the page."""
        page = fill(
            TEMPLATE,
            name=self.search.recipe.name,
            plan=self.search.plan,
            verdict=self.verdict(),
            heads=self._heads(),
            rows=self._rows(),
            plots=self._plots(),
            best=yaml.safe_dump(self._best_recipe().model_dump(mode="json"), sort_keys=False),
        )
        replace_text(self.folder / PAGE, page)

    def print(self) -> None:
        """Print the table, best first, and what it comes to."""
        heads = self._heads()
        print("| " + " | ".join(heads) + " |")
        print("|" + "---|" * len(heads))
        for row in self._rows():
            print("| " + " | ".join(row) + " |")
        print()
        for sentence in self.verdict():
            print(sentence)

    def verdict(self) -> list[str]:
        """Which trial is best, by how much, and whether the next is surely behind it."""
        first, *others = ranked(self.found)
        assert first.score is not None
        plan, score = self.search.plan, first.score
        told = []
        if first.number:
            told.append(
                f"Trial {first.number} is best: S {interval(score)} on {score.tasks} validation "
                f"tasks, against the settings of {self.search.recipe.name}."
            )
        else:
            told.append(f"No trial is better than the settings of {self.search.recipe.name}.")
        if self.again is not None and self.again.score is not None:
            told.append(
                f"On {self.again.score.tasks} other validation tasks, which it was not chosen by: "
                f"S {interval(self.again.score)}."
            )
        rival = next((each for each in others if each.whole), None)
        if rival is not None:
            reference = next(each.losses for each in self.found if each.number == 0)
            told.append(_next(rival, apart(rival.losses, first.losses, reference)))
        stopped = sum(each.state == "stopped" for each in self.found)
        failed = sum(each.state == "failed" for each in self.found)
        told.append(
            f"{len(self.found) - 1} of {plan.trials} trials: {stopped} stopped early, "
            f"{failed} failed."
        )
        return told

    def _best_recipe(self) -> Recipe:
        best = ranked(self.found)[0]
        recipe = changed(self.search.recipe, best.settings if best.number else {})
        return recipe.model_copy(update={"name": f"{recipe.name}-best"})

    def _heads(self) -> list[str]:
        return ["trial", "S", "mean L / mean L*", "outer steps", "", *self.search.space]

    def _rows(self) -> list[list[str]]:
        return [
            [
                str(each.number),
                "–" if each.score is None else interval(each.score),
                "–" if each.score is None else _number(each.score.means),
                str(each.steps),
                STATES.get(each.state) or each.drawn.why,
                *(shown(each.settings.get(name)) for name in self.search.space),
            ]
            for each in ranked(self.found)
        ]

    def _plots(self) -> list[Plot]:
        about = (
            "Below 1 is better than the recipe's own settings; bars are 95% intervals over tasks."
        )
        drawn = [
            ("Score by trial", about, trials_figure(self.found)),
            (
                "Score on the way",
                "Dotted with a cross at the end: stopped early.",
                curves_figure(self.found),
            ),
            (
                "Score by setting",
                "Hollow: stopped early, at its last score. Importance is the share of the scores' "
                "variance that fANOVA puts down to a field; of few trials it says little.",
                settings_figure(self.found, self.search.space, self.importances()),
            ),
        ]
        return [Plot.of(title, words, figure) for title, words, figure in drawn if figure]


def interval(score: Relative) -> str:
    """A score with its interval; a dash where a loss was no number."""
    if math.isnan(score.mean):
        return "–"
    return f"{_number(score.mean)} ({_number(score.low)} to {_number(score.high)})"


def shown(value: Any) -> str:
    """A setting, short."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _next(rival: Found, behind: Apart) -> str:
    name = f"trial {rival.number}" if rival.number else "the recipe's own settings"
    by = f"{behind.mean:+.3f} ({behind.low:+.3f} to {behind.high:+.3f}) on the same tasks"
    return f"It {'is ahead of' if behind.sure else 'cannot be told from'} {name}, the next: {by}."


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
