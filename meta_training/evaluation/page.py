"""A report as one HTML file that needs nothing else: plots, differences, every table.

Knows a report's numbers; knows nothing about models.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jinja2

from meta_training.evaluation.examples_plot import examples_figure
from meta_training.evaluation.plots import (
    calibration_figure,
    steps_figure,
    svg,
    trade_figure,
    wrong_figure,
)
from meta_training.evaluation.report import (
    NOTHING_ELSE,
    TASKS,
    TITLES,
    columns,
    lines,
    perplexity_lines,
    right_figure,
    teaches_everything,
    text,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE: Final = Path(__file__).with_name("page.html")


def fill(template: Path, **values: Any) -> str:
    """A page from a template, which may include this folder's `style.html`."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FileSystemLoader([template.parent, TEMPLATE.parent]),
    )
    return environment.get_template(template.name).render(**values)


@dataclass(frozen=True)
class Plot:
    """A drawing with what it shows, for those who see it and those who do not."""

    title: str
    about: str
    source: str  # a data: URI

    @classmethod
    def of(cls, title: str, about: str, figure: Figure) -> Plot:
        """A figure as it is put into a page."""
        drawing = base64.b64encode(svg(figure).encode()).decode()
        return cls(title, about, f"data:image/svg+xml;base64,{drawing}")


def render(report: dict[str, Any], name: str, served: tuple[str, str]) -> str:
    """The page of a report as ``innerloop evaluate`` writes it.

    Args:
        report: with ``cells``, ``differences``, ``perplexity``,
            ``perplexity_ratio``, ``explained``, ``seed``, ``recipe`` and, if it
            was measured, ``cost``.
        name: of the artifact.
        served: method and checkpoint that a server answers by.
    """
    return fill(
        TEMPLATE,
        name=name,
        report=report,
        served=", ".join(served),
        perplexities=perplexity_lines(report),
        explained=[_explained(task) for task in report["explained"].get("tasks", ())],
        plots=_plots(report, served[1]),
        rows=[row for cell in report["cells"] for row in _rows(report, cell, served)],
        costs=[_cost(cell, cost) for cell, cost in report.get("cost", {}).items()],
        cells={
            cell: [(line, point[TASKS], [text(f, point.get(f)) for f in columns(methods)])
                   for line, point in lines(methods)]
            for cell, methods in report["cells"].items()
        },
        notes={
            cell: NOTHING_ELSE
            for cell, methods in report["cells"].items()
            if teaches_everything(methods)
        },
        titles={
            cell: [TITLES[figure] for figure in columns(methods)]
            for cell, methods in report["cells"].items()
        },
    )  # fmt: skip


def _plots(report: dict[str, Any], steps: str) -> list[Plot]:
    cells = report["cells"]
    if not cells:
        return []
    about = f"Means over tasks, innerloop's after {steps}; bars are 95% intervals."
    drawn = [
        (
            "Quality against examples",
            about + " Solid: innerloop, as served where that has the figure, else the adapter "
            "alone; dotted: the alternative named.",
            examples_figure(cells, steps),
        ),
        (
            "Quality against inner steps",
            "Means over tasks; bars are 95% intervals. Methods without steps are a line across.",
            steps_figure(cells),
        ),
        (
            "What was taught against what was left alone",
            about
            + " Best is the upper left corner: all taught questions right, nothing else changed.",
            trade_figure(cells, steps),
        ),
        (
            "Quality against wrong examples",
            about + " Wrong ones were taught another class's or pair's answer.",
            wrong_figure(cells, steps),
        ),
        (
            "Calibration of choices",
            f"A point a label cell, after {steps}. On the line the model is right as often as it "
            "believes.",
            calibration_figure(cells, steps),
        ),
    ]
    return [Plot.of(title, words, figure) for title, words, figure in drawn if figure]


def _rows(report: dict[str, Any], cell: str, served: tuple[str, str]) -> list[dict[str, str]]:
    """A line per other method, where it is best: how far that is from what is served, in points."""
    figure = right_figure(columns(report["cells"][cell]))
    own = report["cells"][cell].get(served[0], {}).get(served[1], {})
    found = []
    for method, points in report["differences"].get(cell, {}).items():
        known = {checkpoint: point for checkpoint, point in points.items() if figure in point}
        if not known:
            continue
        checkpoint = min(known, key=lambda one: known[one][figure]["mean"])
        point = known[checkpoint]
        found.append(
            {
                "cell": cell,
                "own": text(figure, own.get(figure)),
                "other": method if checkpoint == "-" else f"{method}, {checkpoint}",
                "right": _points(point[figure]),
                "changed": _points(point["changed"]) if "changed" in point else "–",
                "tasks": str(point[figure][TASKS]),
                "sure": _side(point[figure]),
            }
        )
    return found


def _cost(cell: str, cost: dict[str, float]) -> list[str]:
    meanwhile = (cost["prompts_s"] + cost["steps_s"]) / max(cost["token_s"], 1e-9)
    return [
        cell,
        f"{cost['examples']:.0f}",
        f"{cost['taught_tokens']:.0f}",
        f"{cost['prompts_s'] * 1000:.0f}",
        f"{cost['steps_s'] * 1000:.0f}",
        f"{meanwhile:.0f}",
    ]


def _explained(task: dict[str, Any]) -> dict[str, Any]:
    return {
        "losses": f"{_digits(task['loss_start'], 3)} before, {_digits(task['loss'], 3)} after",
        "examples": [
            (
                example["question"],
                example["answer"],
                _digits(example["loss_change"], 3),
                _digits(example["share"], 1, 100),
            )
            for example in task["examples"]
        ],
        "modules": [
            (name, _digits(norm, 3))
            for name, norm in sorted(task["modules"].items(), key=lambda one: -(one[1] or 0))
        ],
    }


def _digits(value: float | None, digits: int, scale: int = 1) -> str:
    return "–" if value is None else f"{scale * value:.{digits}f}"


def _points(value: dict[str, Any]) -> str:
    if value["low"] is None:
        return _signed(value["mean"])
    return f"{_signed(value['mean'])} ({_signed(value['low'])} to {_signed(value['high'])})"


def _signed(share: float) -> str:
    points = round(100 * share, 1)
    return f"{points:+.1f}" if points else "0.0"


def _side(value: dict[str, Any]) -> str:
    """Which side of zero the whole interval is on, as a class of the page's style."""
    if value["low"] is None or value["low"] <= 0 <= value["high"]:
        return "even"
    return "ahead" if value["low"] > 0 else "behind"
