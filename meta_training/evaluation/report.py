"""Sums results up: means with 95% intervals, as ``report.json`` and as Markdown tables.

Knows the lines a run keeps; knows nothing about models.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from meta_training.evaluation.judge import interval

TASKS = "tasks"
Summary = dict[str, dict[str, dict[str, dict[str, Any]]]]
TITLES = {
    "choice": "accuracy %",
    "choice_model": "accuracy, adapter alone %",
    "choice_memory": "accuracy, memory alone %",
    "exact": "exactly right %",
    "chrf": "chrF",
    "changed": "unrelated answers changed %",
    "changed_first": "first token changed %",
    "opened": "gate opened %",
    "opened_else": "gate opened, unrelated %",
    "kl": "KL, nats/token",
}
PERCENT = TITLES.keys() - {"kl"}


def summarise(rows: Iterable[dict[str, Any]]) -> Summary:
    """cell -> method -> checkpoint -> ``tasks``, and by figure {mean, ci95}.

    The mean is None where a method diverged, the interval also where there is one task only.
    """
    values: dict[tuple[str, str, str, str], dict[int, float]] = defaultdict(dict)
    for row in rows:
        for figure, value in row["figures"].items():
            key = (row["cell"], row["method"], row["checkpoint"], figure)
            values[key][row["task"]] = math.nan if value is None else value
    summary: Summary = {}
    for (cell, method, checkpoint, figure), by_task in values.items():
        mean, half = interval(list(by_task.values()))
        place = summary.setdefault(cell, {}).setdefault(method, {}).setdefault(checkpoint, {})
        place[figure] = {"mean": _finite(mean), "ci95": _finite(half)}
        place[TASKS] = max(len(by_task), place.get(TASKS, 0))
    return summary


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def markdown(summary: Summary, figures: Sequence[str] = tuple(TITLES)) -> str:
    """One table a cell: a line per method and checkpoint, a column per figure the cell has."""
    parts = []
    for cell, methods in summary.items():
        have = {f for points in methods.values() for point in points.values() for f in point}
        columns = [figure for figure in figures if figure in have]
        parts.append(f"### {cell}\n")
        parts.append("| method | " + " | ".join(TITLES[c] for c in columns) + " | tasks |")
        parts.append("|---|" + "---|" * (len(columns) + 1))
        for method, points in methods.items():
            for checkpoint, point in sorted(points.items(), key=lambda item: _steps(item[0])):
                name = method if checkpoint == "-" else f"{method}, {checkpoint}"
                cells = [_text(column, point.get(column)) for column in columns]
                parts.append(f"| {name} | " + " | ".join(cells) + f" | {point[TASKS]} |")
        parts.append("")
    return "\n".join(parts)


def _steps(checkpoint: str) -> int:
    """How many steps a checkpoint is after; as text, 10 would come before 3."""
    first = checkpoint.split()[0]
    return int(first) if first.isdecimal() else 0


def _text(figure: str, value: dict[str, Any] | None) -> str:
    if value is None or value["mean"] is None:
        return "–"
    scale = 100 if figure in PERCENT else 1
    digits = 1 if figure in PERCENT else 3
    text = f"{value['mean'] * scale:.{digits}f}"
    half = value["ci95"]
    return text if half is None else f"{text} ± {half * scale:.{digits}f}"
