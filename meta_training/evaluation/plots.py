"""A report's numbers drawn: quality against inner steps and wrong examples, answers left alone.

Knows a summary's numbers; knows nothing about models. matplotlib is only imported when it draws.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meta_training.evaluation.report import (
    Summary,
    columns,
    right_figure,
    steps_of,
    wrong_percent_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LORA_STEPS: Final = "5 steps"  # plain LoRA's, which knows no rule
COLOURS: Final = ("#3d4cc9", "#11704a", "#b3261e", "#8a5a00", "#6b2f86", "#0b7285", "#565c76")
MARKS: Final = "osD^vPX"
PANELS: Final = 3  # a row


def steps_figure(summary: Summary) -> Figure | None:
    """Quality against inner steps: every cell, methods that take none as a line across."""
    return _cells(_well_taught(summary), _draw_steps, "steps")


def trade_figure(summary: Summary, steps: str) -> Figure | None:
    """What was taught, answered right, against what was not taught, answered differently."""
    told = {c: m for c, m in _well_taught(summary).items() if _has({c: m}, "changed")}
    draw = partial(_draw_trade, steps=steps)
    return _cells(told, draw, "unrelated answers changed, %")


def wrong_figure(summary: Summary, steps: str) -> Figure | None:
    """Quality against the share of examples that were taught another class's answer."""
    shares: Summary = {}
    for cell, methods in summary.items():
        shape, percent = wrong_percent_of(cell)
        for method, points in methods.items():
            checkpoint = _judged_at(points, steps)
            if checkpoint is not None:
                found = shares.setdefault(shape, {}).setdefault(method, {})
                found[str(percent)] = points[checkpoint]
    several = {shape: methods for shape, methods in shares.items() if _several(methods)}
    return _cells(several, _draw_wrong, "examples taught wrongly, %")


def calibration_figure(summary: Summary, steps: str) -> Figure | None:
    """How often the best choice is right against the probability that it was given."""
    figure, (axes,) = blank_figure(1, 1, 4.6, 4.2)
    for number, (method, cells) in enumerate(_methods(summary).items()):
        points = [
            summary[cell][method][checkpoint]
            for cell in cells
            if (checkpoint := _judged_at(summary[cell][method], steps)) is not None
        ]
        found = [
            (100 * point["confidence"]["mean"], 100 * point["choice"]["mean"])
            for point in points
            if point.get("confidence", {}).get("mean") is not None
            and point["choice"]["mean"] is not None
        ]
        if found:
            colour, mark = _style(number)
            axes.plot(*zip(*found, strict=True), mark, color=colour, label=method)
    if not axes.has_data():
        return None
    axes.plot([0, 100], [0, 100], "-", color="#c5c9d8", zorder=0)
    axes.set_xlabel("mean probability of the best choice, %")
    axes.set_ylabel("best choice right, %")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.legend(fontsize=8, loc="lower right", frameon=False)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure; the suffix says the format. Equal numbers give equal bytes."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "innerloop"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def svg(figure: Figure) -> str:
    """A figure as the text of an SVG file."""
    import matplotlib

    text = StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "innerloop"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def blank_figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Empty panels in the reports' style; sizes in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    axes = [each for row in panels for each in row]
    for each in axes:
        each.grid(axis="y", alpha=0.3)
        for side in ("top", "right"):
            each.spines[side].set_visible(False)
    return figure, axes


def draw_line(
    axes: Axes,
    points: Sequence[tuple[float, dict[str, Any] | None]],
    colour: str,
    style: str,
    label: str | None,
    scale: float = 100.0,
) -> None:
    """A line of means with their intervals, through the places that have one."""
    known = [
        (place, scale * point["mean"], scale * (point["ci95"] or 0.0))
        for place, point in points
        if point is not None and point["mean"] is not None
    ]
    if known:
        places, means, halves = zip(*known, strict=True)
        axes.errorbar(
            places, means, halves, fmt=style, color=colour, label=label, markersize=4, capsize=2
        )


Points = dict[str, dict[str, Any]]  # of a method in a cell, by checkpoint
Draw = Callable[["Axes", str, str, Points, str, str], None]
"""Draws a method into a cell's panel: its name, the figure that counts, points, colour, mark."""


def _style(number: int) -> tuple[str, str]:
    """Colour and mark of a method, by its place in the report."""
    return COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]


def _cells(summary: Summary, draw: Draw, across: str) -> Figure | None:
    """A panel a cell; a method has the same colour in each, told once below them."""
    if not summary:
        return None
    cells = sorted(summary, key=_numbers_by_size)
    rows = -(-len(cells) // PANELS)
    names = list(_methods(summary))
    figure, axes = blank_figure(rows, min(PANELS, len(cells)), 9.6, 2.7 * rows + 0.6)
    for each in axes[len(cells) :]:
        each.set_visible(False)
    for cell, each in zip(cells, axes, strict=False):
        right = right_figure(columns(summary[cell]))
        for method, points in summary[cell].items():
            draw(each, method, right, points, *_style(names.index(method)))
        each.set_title(cell, fontsize=9)
        each.set_ylim(0, 102)
        each.set_xlabel(across, fontsize=8)
    axes[0].set_ylabel("% right")
    handles = {
        text: handle
        for each in axes
        for handle, text in zip(*each.get_legend_handles_labels(), strict=True)
    }
    shown = [name for name in names if name in handles]
    figure.legend(
        [handles[name] for name in shown],
        shown,
        loc="outside lower center",
        ncols=3,
        fontsize=8,
        frameon=False,
    )
    return figure


def _draw_steps(
    axes: Axes, method: str, right: str, points: Points, colour: str, mark: str
) -> None:
    taken = sorted(points, key=steps_of)
    if set(taken) <= {"-", "prompt"}:
        mean = points[taken[0]].get(right, {}).get("mean")
        if mean is not None:
            axes.axhline(100 * mean, ls="--", lw=1.2, color=colour, label=method)
    else:
        known = [(steps_of(checkpoint), points[checkpoint].get(right)) for checkpoint in taken]
        draw_line(axes, known, colour, mark + "-", method)
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xticks([0, 1, 3, 5, 10, 50], ["0", "1", "3", "5", "10", "50"])


def _draw_wrong(
    axes: Axes, method: str, right: str, points: Points, colour: str, mark: str
) -> None:
    known = [(int(share), points[share].get(right)) for share in sorted(points, key=int)]
    draw_line(axes, known, colour, mark + "-", method)


def _draw_trade(
    axes: Axes, method: str, right: str, points: Points, colour: str, mark: str, *, steps: str
) -> None:
    point = points.get(_judged_at(points, steps) or "", {})
    axes.set_xlim(-1, 101)
    if any(point.get(figure, {}).get("mean") is None for figure in ("changed", right)):
        return
    axes.errorbar(
        100 * point["changed"]["mean"],
        100 * point[right]["mean"],
        100 * (point[right]["ci95"] or 0.0),
        100 * (point["changed"]["ci95"] or 0.0),
        fmt=mark,
        color=colour,
        label=method,
        markersize=6,
    )


def _numbers_by_size(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _has(summary: Summary, figure: str) -> bool:
    found = (points for methods in summary.values() for points in methods.values())
    return any(figure in point for points in found for point in points.values())


def _well_taught(summary: Summary) -> Summary:
    return {cell: methods for cell, methods in summary.items() if not wrong_percent_of(cell)[1]}


def _several(methods: dict[str, Points]) -> bool:
    return any(len(points) > 1 for points in methods.values())


def _methods(summary: Summary) -> dict[str, list[str]]:
    """Every method, in the order of the report, with the cells that it was judged on."""
    found: dict[str, list[str]] = {}
    for cell, methods in summary.items():
        for method in methods:
            found.setdefault(method, []).append(cell)
    return found


def _judged_at(points: Points, steps: str) -> str | None:
    """The checkpoint where a method's quality is read: the rule's, LoRA's, or its only one."""
    return next((one for one in (steps, LORA_STEPS, "-", "prompt") if one in points), None)
