"""Quality against the number of examples, drawn: a line for each family, ways and queries.

Knows a summary's numbers and how cells are called; knows nothing about models.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meta_training.evaluation.cells import Cell
from meta_training.evaluation.plots import COLOURS, LORA_STEPS, blank_figure, draw_line
from meta_training.evaluation.report import ADAPTER, PERCENT, SERVED, Summary, columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LORA: Final = ("LoRA, pre-trained base", LORA_STEPS)
TFIDF: Final = ("TF-IDF nearest centroid", "-")
TITLES: Final = {
    "exact": "Free answers, exactly right",
    "obeys": "Free answers, in the form shown",
    "chrf": "Free answers, likeness to the right one",
    "nats": "Free answers, surprise of the right one",
    "choice": "Labels picked from choices",
}
UNITS: Final = {"chrf": "chrF", "nats": "nats/token, less is better"}  # of others % right

Methods = dict[str, dict[str, dict[str, Any]]]  # method -> checkpoint -> figure


class Group(NamedTuple):
    """Cells that differ in their number of examples alone."""

    family: str
    ways: int
    asked: int | None

    @property
    def name(self) -> str:
        """Such as ``label 5-way, 5 queries``."""
        queries = "" if self.asked is None else f", {self.asked} queries"
        return f"{self.family} {self.ways}-way{queries}"


Lines = Mapping[Group, Mapping[int, Methods]]  # by number of examples


def examples_figure(summary: Summary, steps: str) -> Figure | None:
    """Quality against the number of examples: a panel a figure, a line a group of cells.

    Groups judged at fewer than two numbers of examples are left out; None where all are. As
    served, or of the adapter where that has no such figure; ``steps`` is the rule's checkpoint.
    """
    panels = _panels(_lines(summary), steps)
    if not panels:
        return None
    figure, axes = blank_figure(1, len(panels), 4.5 * len(panels), 3.6)
    for each, (name, groups) in zip(axes, panels.items(), strict=True):
        _draw(each, name, groups, steps)
    return figure


def _lines(summary: Summary) -> Lines:
    found: dict[Group, dict[int, Methods]] = defaultdict(dict)
    for name, methods in summary.items():
        cell = Cell.called(name)
        if not cell.wrong_percent:
            found[Group(cell.family, cell.ways, cell.asked)][cell.shots] = methods
    return {group: dict(sorted(shots.items())) for group, shots in sorted(found.items(), key=_size)}


def _size(item: tuple[Group, Any]) -> tuple[str, int, int]:
    return item[0].family, item[0].ways, item[0].asked or 0


def _panels(lines: Lines, steps: str) -> dict[str, Lines]:
    """The groups to draw for each figure, in the order of ``TITLES``."""
    panels: dict[str, dict[Group, Mapping[int, Methods]]] = {name: {} for name in TITLES}
    for group, by_shots in lines.items():
        for name in _told({f for methods in by_shots.values() for f in columns(methods)}):
            methods = (_ours(by_shots, name, steps), _other(name))
            places = [len(_points(by_shots, name, method)) for method in methods]
            if max(places) > 1:
                panels[name][group] = by_shots
    return {name: groups for name, groups in panels.items() if groups}


def _told(figures: set[str]) -> list[str]:
    """Which figures say how good a family is.

    Hardly a free answer is right word for word unless it was taught so, hence the likeness as well.
    """
    if "choice" in figures:
        return ["choice"]
    whole = "obeys" if "obeys" in figures else "exact"
    likeness = next((name for name in ("chrf", "nats") if name in figures), whole)
    return [name for name in TITLES if name in {whole, likeness}]


def _draw(axes: Axes, name: str, groups: Lines, steps: str) -> None:
    scale = 100.0 if name in PERCENT else 1.0
    other = _other(name)
    seen = sorted({shots for by_shots in groups.values() for shots in by_shots})
    compared = False
    for number, (group, by_shots) in enumerate(groups.items()):
        colour = COLOURS[number % len(COLOURS)]
        ours = _points(by_shots, name, _ours(by_shots, name, steps))
        theirs = _points(by_shots, name, other)
        draw_line(axes, list(ours.items()), colour, "o-", group.name, scale)
        draw_line(axes, list(theirs.items()), colour, "o:", None if ours else group.name, scale)
        compared = compared or bool(theirs)
    if compared:
        label = ", ".join(part for part in other if part != "-")
        axes.plot([], [], ":", color="#565c76", label=label)
    axes.set_title(TITLES[name], fontsize=11)
    axes.set_xlabel("examples of each")
    axes.set_ylabel(UNITS.get(name, "% right"))
    axes.set_xticks(seen)
    axes.set_xlim(seen[0] - 0.4, seen[-1] + 0.4)
    axes.set_ylim(0, None if name == "nats" else 102)
    axes.legend(fontsize=8, loc="best" if name == "nats" else "lower right", frameon=False)


def _ours(by_shots: Mapping[int, Methods], name: str, steps: str) -> tuple[str, str]:
    """As served, where that has the figure."""
    served = (SERVED, steps)
    return served if _points(by_shots, name, served) else (ADAPTER, steps)


def _other(name: str) -> tuple[str, str]:
    return TFIDF if name == "choice" else LORA


def _points(
    by_shots: Mapping[int, Methods], name: str, method: tuple[str, str]
) -> dict[int, dict[str, Any]]:
    """A method's figure by number of examples, where it has a mean."""
    found = {
        shots: methods.get(method[0], {}).get(method[1], {}).get(name)
        for shots, methods in by_shots.items()
    }
    return {shots: point for shots, point in found.items() if point and point["mean"] is not None}
