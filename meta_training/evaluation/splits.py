"""Means over splits of a source's classes, each with its own artifact, as papers report them.

Knows recipes and the lines that evaluations keep; knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meta_training.evaluation.intervals import over_runs
from meta_training.evaluation.report import PERCENT, TASKS, Summary, markdown
from meta_training.recipe import Recipe

Point = dict[str, Any]  # mean, deviation and ci95 by figure, and how many tasks a split


class SplitsError(ValueError):
    """Artifacts are no splits of one source; the message says which is not."""


def check_splits(recipes: Sequence[tuple[str, Recipe]]) -> None:
    """Make sure that the recipes, each with its artifact's name, differ in their split alone.

    Raises:
        SplitsError: they do not, or two have the same split.
    """
    numbers: dict[int, str] = {}
    first, expected = recipes[0][0], _without_split(recipes[0][1])
    for name, recipe in recipes:
        split = recipe.data.split
        if split is None:
            raise SplitsError(
                f"{name}: its recipe has no data.split, so there is no mean over splits with it: "
                "evaluate it alone"
            )
        if split.number in numbers:
            raise SplitsError(f"{name} and {numbers[split.number]} have split {split.number} both")
        numbers[split.number] = name
        own = _without_split(recipe)
        for part, values in own.items():
            if values != expected[part]:
                raise SplitsError(f"{name}: {part} of its recipe is not that of {first}")


def mean_over_splits(summaries: Sequence[Summary]) -> Summary:
    """cell -> method -> checkpoint -> figure -> its mean over the splits, of what all have.

    A figure counts where each split has as many tasks of it and none diverged.
    """
    found: Summary = {}
    for cell, methods in summaries[0].items():
        for method, points in methods.items():
            for checkpoint in points:
                all_have = [s.get(cell, {}).get(method, {}).get(checkpoint) for s in summaries]
                point = _mean_point([each for each in all_have if each is not None], len(summaries))
                if point:
                    found.setdefault(cell, {}).setdefault(method, {})[checkpoint] = point
    return found


def markdown_of_means(means: Summary, splits: int) -> str:
    """A table a cell, each figure as its mean ± standard deviation (95% interval of the mean)."""
    head = f"Mean over {splits} splits ± standard deviation (95% interval of the mean).\n\n"
    return head + markdown(means, _text, "tasks a split")


def _without_split(recipe: Recipe) -> dict[str, Any]:
    """All that makes the artifact but which split it is of, and its name."""
    return recipe.model_dump(exclude={"name": True, "data": {"split": {"number"}}})


def _mean_point(points: Sequence[dict[str, Any]], splits: int) -> Point:
    tasks = {point[TASKS] for point in points}
    if len(points) < splits or len(tasks) > 1:
        return {}
    found: Point = {}
    for figure in points[0].keys() - {TASKS}:
        values = [point[figure]["mean"] for point in points if figure in point]
        if len(values) == splits and None not in values:
            mean, deviation, half = over_runs(values)
            found[figure] = {"mean": mean, "deviation": deviation, "ci95": half}
    return found and found | {TASKS: tasks.pop()}


def _text(figure: str, value: dict[str, Any] | None) -> str:
    if value is None:
        return "–"
    scale, digits = (100, 1) if figure in PERCENT else (1, 3)
    mean, deviation, half = (scale * value[name] for name in ("mean", "deviation", "ci95"))
    ends = f"{mean - half:.{digits}f} to {mean + half:.{digits}f}"
    return f"{mean:.{digits}f} ± {deviation:.{digits}f} ({ends})"
