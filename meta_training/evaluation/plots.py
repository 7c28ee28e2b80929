"""Quality against the number of examples, drawn from a report's cells.

Knows a summary's numbers; knows nothing about models. matplotlib is only imported when it draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meta_training.evaluation.report import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS: Final = "5 steps"
SERVED: Final = ("innerloop with recall", STEPS)
OURS: Final = ("innerloop", STEPS)
LORA: Final = ("LoRA, pre-trained base", STEPS)
TFIDF: Final = ("TF-IDF nearest centroid", "-")
SHOTS: Final = (1, 3, 5)
COLOURS: Final = ("#3d4cc9", "#11704a", "#b3261e")
REPLIES: Final = {
    "one reply": "house_reply 1-way",
    "three replies at once": "house_reply 3-way",
    "a persona's answers": "persona 3-way",
}
LABELS: Final = {
    "5 labels": "label 5-way",
    "10 labels": "label 10-way",
    "20 labels": "label 20-way",
}


def quality_plot(summary: Summary, path: Path) -> None:
    """Draw what is there of every family at 1, 3 and 5 examples; the suffix says the format.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # Equal numbers give equal bytes.
    with matplotlib.rc_context({"svg.hashsalt": "innerloop", "font.size": 10}):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True)
        _panel(left, summary, REPLIES, "exact", "Free answers, exactly right", SERVED, LORA)
        _panel(right, summary, LABELS, "choice", "Labels picked from choices", OURS, TFIDF)
        left.set_ylabel("% of other wordings")
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        pyplot.close(figure)


def _panel(
    axes: Axes,
    summary: Summary,
    families: dict[str, str],
    name: str,
    title: str,
    ours: tuple[str, str],
    other: tuple[str, str],
) -> None:
    for colour, (label, family) in zip(COLOURS, families.items(), strict=True):
        for method, line in ((ours, "-"), (other, ":")):
            points = [_point(summary, f"{family} {shots}-shot", method, name) for shots in SHOTS]
            _line(axes, points, colour, line, label if method is ours else None)
    axes.plot([], [], ":", color="#565c76", label=", ".join(part for part in other if part != "-"))
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("examples of each")
    axes.set_xticks(SHOTS)
    axes.set_ylim(0, 100)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, loc="lower right", frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _line(
    axes: Axes, points: Sequence[dict[str, Any] | None], colour: str, line: str, label: str | None
) -> None:
    known = [
        (shots, 100 * point["mean"], 100 * (point["ci95"] or 0.0))
        for shots, point in zip(SHOTS, points, strict=True)
        if point is not None and point["mean"] is not None
    ]
    if known:
        shots, means, halves = zip(*known, strict=True)
        axes.errorbar(
            shots, means, halves, fmt=f"o{line}", color=colour, label=label, markersize=4, capsize=2
        )


def _point(
    summary: Summary, cell: str, method: tuple[str, str], name: str
) -> dict[str, Any] | None:
    return summary.get(cell, {}).get(method[0], {}).get(method[1], {}).get(name)
