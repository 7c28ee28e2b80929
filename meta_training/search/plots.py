"""A search drawn: scores by trial, on the way, and by setting.

Knows trials and their scores; knows nothing about models. matplotlib is imported when it draws.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from meta_training.evaluation.plots import COLOURS, PANELS, blank_figure
from meta_training.search.found import Found, best_of
from meta_training.search.plan import Range

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WHOLE, STOPPED, FAILED, OWN = COLOURS[0], COLOURS[3], COLOURS[2], COLOURS[6]
WIDE: Final = 3.0  # scores further apart than by this factor are drawn in their logarithms


def trials_figure(found: Sequence[Found]) -> Figure:
    """Every trial's score with its interval, and the best so far."""
    from matplotlib.ticker import MaxNLocator

    figure, (axes,) = blank_figure(1, 1, 9, 3.6)
    kinds = (
        ("complete", "o", WHOLE, WHOLE),
        ("stopped", "s", STOPPED, "white"),
        ("reference", "D", OWN, OWN),
    )
    for state, mark, colour, face in kinds:
        for i, each in enumerate(one for one in found if one.state == state and _drawable(one)):
            score = each.score
            assert score is not None
            below, above = score.mean - score.low, score.high - score.mean
            bars = None if math.isnan(below + above) else [[max(0.0, below)], [max(0.0, above)]]
            axes.errorbar(
                [each.number],
                [score.mean],
                bars,
                fmt=mark,
                color=colour,
                markerfacecolor=face,
                capsize=2,
                label=None if i else _named(state),
            )
    failed = [each.number for each in found if each.state == "failed"]
    if failed:
        axes.plot(failed, [1.0] * len(failed), "x", color=FAILED, markersize=9, label="failed")
    best, line = math.inf, []
    for each in found:
        if each.whole and each.score is not None:
            best = min(best, each.score.mean)
        line.append(best)
    axes.step([each.number for each in found], line, "-", where="post", color=WHOLE, lw=1)
    axes.axhline(1.0, ls=":", color=OWN)
    axes.set_xlabel("trial")
    axes.set_ylabel("S, to the recipe's own settings")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _scale(axes, found)
    axes.legend(fontsize=8, frameon=False)
    return figure


def curves_figure(found: Sequence[Found]) -> Figure | None:
    """Scores against outer steps; nothing where trials were judged once."""
    several = [each for each in found if len(each.curve) > 1]
    if not several:
        return None
    figure, (axes,) = blank_figure(1, 1, 9, 3.6)
    best = best_of(found)
    for each in several:
        points = {step: mean for step, mean in each.curve.items() if math.isfinite(mean)}
        colour = OWN if each.state == "reference" else WHOLE if each.whole else STOPPED
        style = "-" if each.whole else ":"
        width = 2.2 if each is best else 0.9
        axes.plot(list(points), list(points.values()), style, color=colour, lw=width)
        if not each.whole and points:
            axes.plot([max(points)], [points[max(points)]], "x", color=colour)
    axes.axhline(1.0, ls=":", color=OWN)
    axes.set_xticks(sorted({step for each in several for step in each.curve}))
    axes.set_xlabel("outer steps")
    axes.set_ylabel("S")
    _scale(axes, found)
    return figure


def settings_figure(
    found: Sequence[Found],
    space: Mapping[str, Sequence[Any] | Range],
    importances: Mapping[str, float],
) -> Figure | None:
    """Scores against the values of each field."""
    tried = [each for each in found if each.number and _drawable(each)]
    if not tried:
        return None
    rows = -(-len(space) // PANELS)
    columns = min(PANELS, len(space))
    figure, panels = blank_figure(rows, columns, 3.2 * columns, 2.6 * rows)
    for axes in panels[len(space) :]:
        axes.set_visible(False)
    for axes, (name, of) in zip(panels, space.items(), strict=False):
        for each in tried:
            value = each.settings[name]
            place = value if isinstance(of, Range) else list(of).index(value)
            face = WHOLE if each.whole else "white"
            colour = WHOLE if each.whole else STOPPED
            assert each.score is not None
            axes.plot([place], [each.score.mean], "o", color=colour, markerfacecolor=face)
        if isinstance(of, Range):
            _range_axis(axes, of)
        else:
            axes.set_xticks(range(len(of)), [_short(value) for value in of], fontsize=8)
        axes.axhline(1.0, ls=":", color=OWN)
        share = f"\nimportance {importances[name]:.2f}" if name in importances else ""
        axes.set_title(name + share, fontsize=9)
        _scale(axes, tried)
    panels[0].set_ylabel("S")
    return figure


def _range_axis(axes: Axes, of: Range) -> None:
    """From end to end, with these and the middle named."""
    middle = math.sqrt(of.low * of.high) if of.log else (of.low + of.high) / 2
    axes.set_xscale("log" if of.log else "linear")
    axes.minorticks_off()
    ticks = (of.low, middle, of.high)
    axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks], fontsize=8)
    beyond = (of.high / of.low) ** 0.05 if of.log else (of.high - of.low) * 0.05
    ends = (of.low / beyond, of.high * beyond) if of.log else (of.low - beyond, of.high + beyond)
    axes.set_xlim(*ends)


def _drawable(each: Found) -> bool:
    return each.score is not None and math.isfinite(each.score.mean) and each.state != "failed"


def _named(state: str) -> str:
    return {"stopped": "stopped early", "reference": "the recipe's own settings"}.get(state, state)


def _scale(axes: Axes, found: Sequence[Found]) -> None:
    scores = [each.score.mean for each in found if _drawable(each) and each.score is not None]
    scores += [mean for each in found for mean in each.curve.values() if math.isfinite(mean)]
    if scores and min(scores) > 0 and max(scores) > WIDE * min(scores):
        axes.set_yscale("log")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 14 else text[:13] + "…"
