"""Sums results up: means with 95% intervals and differences, as ``report.json`` and as tables.

Knows the lines a run keeps; knows nothing about models.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterable
from typing import Any, Final

from meta_training.evaluation.intervals import interval, paired_bootstrap

TASKS: Final = "tasks"
SERVED: Final = "innerloop with recall"  # free answers, as a server gives them
ADAPTER: Final = "innerloop"
COMPARED: Final = ("choice", "obeys", "exact", "changed")

Summary = dict[str, dict[str, dict[str, dict[str, Any]]]]
TITLES = {
    "choice": "accuracy %",
    "choice_model": "accuracy, adapter alone %",
    "choice_memory": "accuracy, memory alone %",
    "confidence": "probability of the best %",
    "brier": "Brier score",
    "exact": "exactly right %",
    "chrf": "chrF",
    "nats": "nats/token of the right answer",
    "obeys": "in the form shown %",
    "preferred": "better answer likelier %",
    "changed": "unrelated answers changed %",
    "changed_first": "first token changed %",
    "opened": "gate opened %",
    "opened_else": "gate opened, unrelated %",
    "kl": "KL, nats/token",
}
NOTHING_ELSE: Final = (
    "Tasks of this cell teach all that there is to ask, so that nobody knows what happens to other "
    "answers: more classes, or other tasks beside these, would tell."
)
PERCENT = TITLES.keys() - {"kl", "brier", "nats"}
_Place = tuple[str, str, str, str]  # cell, method, checkpoint, figure


def summarise(rows: Iterable[dict[str, Any]]) -> Summary:
    """cell -> method -> checkpoint -> ``tasks``, and by figure {mean, ci95}.

    The mean is None where a method diverged, the interval also where there is one task only.
    """
    summary: Summary = {}
    for (cell, method, checkpoint, figure), by_task in _by_task(rows).items():
        mean, half = interval(list(by_task.values()))
        place = summary.setdefault(cell, {}).setdefault(method, {}).setdefault(checkpoint, {})
        place[figure] = {"mean": _finite(mean), "ci95": _finite(half)}
        place[TASKS] = max(len(by_task), place.get(TASKS, 0))
    return summary


def differences(rows: Iterable[dict[str, Any]], served: tuple[str, str]) -> Summary:
    """How much better than the others a method is at a checkpoint, on tasks that both have.

    cell -> method -> checkpoint -> figure -> {mean, low, high, tasks}: ``served`` minus the other,
    with the paired bootstrap's 95% interval. A figure is left out where either diverged on a task.
    """
    values = _by_task(rows)
    found: Summary = {}
    for (cell, method, place, figure), others in values.items():
        own = values.get((cell, *served, figure), {})
        if method == served[0] or figure not in COMPARED:
            continue
        pairs = [own[task] - other for task, other in sorted(others.items()) if task in own]
        if not pairs or not math.isfinite(sum(pairs)):
            continue
        low, high = paired_bootstrap(pairs)
        found.setdefault(cell, {}).setdefault(method, {}).setdefault(place, {})[figure] = {
            "mean": _finite(sum(pairs) / len(pairs)),
            "low": _finite(low),
            "high": _finite(high),
            TASKS: len(pairs),
        }
    return found


def right_figure(figures: Container[str]) -> str:
    """The one of ``figures`` that says how much is answered right."""
    return next((figure for figure in ("choice", "obeys") if figure in figures), "exact")


def wrong_percent_of(cell: str) -> tuple[str, int]:
    """A cell's name without its share of wrong examples, and that share in percent."""
    found = re.fullmatch(r"(.*), (\d+)% wrong", cell)
    return (found[1], int(found[2])) if found else (cell, 0)


def steps_of(checkpoint: str) -> int:
    """How many steps a checkpoint is after; as text, 10 would come before 3."""
    first = checkpoint.split()[0]
    return int(first) if first.isdecimal() else 0


def columns(methods: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """The figures that a cell has, in the order of tables."""
    have = {f for points in methods.values() for point in points.values() for f in point}
    return [figure for figure in TITLES if figure in have]


def teaches_everything(methods: dict[str, dict[str, dict[str, Any]]]) -> bool:
    """Whether answers were judged, but none to anything unrelated: no task of the cell has such."""
    figures = set(columns(methods))
    return "exact" in figures and not figures & {"changed", "kl"}


def lines(methods: dict[str, dict[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """A cell's methods and checkpoints in the order of tables, named."""
    return [
        (method if checkpoint == "-" else f"{method}, {checkpoint}", point)
        for method, points in methods.items()
        for checkpoint, point in sorted(points.items(), key=lambda item: steps_of(item[0]))
    ]


def text(figure: str, value: dict[str, Any] | None) -> str:
    """A figure with its interval; a dash where there is none."""
    if value is None or value["mean"] is None:
        return "–"
    scale = 100 if figure in PERCENT else 1
    digits = 1 if figure in PERCENT else 3
    shown = f"{value['mean'] * scale:.{digits}f}"
    half = value["ci95"]
    return shown if half is None else f"{shown} ± {half * scale:.{digits}f}"


def markdown(
    summary: Summary,
    shown: Callable[[str, dict[str, Any] | None], str] = text,
    counted: str = TASKS,
) -> str:
    """One table a cell: a line per method and checkpoint, a column per figure the cell has.

    ``shown`` writes a figure, ``counted`` heads the number of tasks.
    """
    parts = []
    for cell, methods in summary.items():
        figures = columns(methods)
        parts.append(f"### {cell}\n")
        parts.append("| method | " + " | ".join(TITLES[c] for c in figures) + f" | {counted} |")
        parts.append("|---|" + "---|" * (len(figures) + 1))
        for name, point in lines(methods):
            cells = [shown(figure, point.get(figure)) for figure in figures]
            parts.append(f"| {name} | " + " | ".join(cells) + f" | {point[TASKS]} |")
        if teaches_everything(methods):
            parts.append(f"\n{NOTHING_ELSE}")
        parts.append("")
    return "\n".join(parts)


def perplexity_lines(report: dict[str, Any]) -> list[str]:
    """Each model's perplexity and the ratio of the two; nothing where there are no dialogues."""
    told = dict(report["perplexity"])
    if report["perplexity_ratio"]:
        told["innerloop over pre-trained, row by row"] = report["perplexity_ratio"]
    return [_perplexity(name, value) for name, value in told.items()]


def _perplexity(name: str, value: dict[str, Any]) -> str:
    ends = "" if value["low"] is None else f" ({value['low']:.3f} to {value['high']:.3f})"
    mean = "–" if value["mean"] is None else f"{value['mean']:.3f}"
    return f"{name} {mean}{ends}"


def _by_task(rows: Iterable[dict[str, Any]]) -> dict[_Place, dict[int, float]]:
    values: dict[_Place, dict[int, float]] = defaultdict(dict)
    for row in rows:
        for figure, value in row["figures"].items():
            place = (row["cell"], row["method"], row["checkpoint"], figure)
            values[place][row["task"]] = math.nan if value is None else value
    return values


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
