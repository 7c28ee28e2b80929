"""What a load looked like: latencies by percentile and over time, as SVG or PNG.

matplotlib is only imported when it draws.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from server.commands.load.tally import Measure, Tally

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS: Final = ("#3d4cc9", "#11704a", "#b3261e", "#8a5a00", "#565c76", "#7b2d8b")
SHOWN: Final = {
    Measure.FIRST_TOKEN: "to the first token",
    Measure.WHOLE_ANSWER: "whole answer",
    Measure.TOKEN_GAP: "between two tokens",
    Measure.ADAPT: "a lesson",
    Measure.FEEDBACK: "a correction",
    Measure.TAUGHT_FIRST_TOKEN: "taught to first token",
}
SLICES: Final = 60


def plot(tally: Tally, folder: Path, suffix: str) -> list[Path]:
    """Draw `latency` and `timeline` into ``folder``; gives the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    made = []
    with matplotlib.rc_context({"svg.hashsalt": "innerloop", "font.size": 10}):
        for name, draw in (("latency", _latency), ("timeline", _timeline)):
            figure, axes = pyplot.subplots(figsize=(8, 4))
            draw(axes, tally)
            axes.grid(alpha=0.3)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=8, frameon=False)
            figure.tight_layout()
            made.append(folder / f"{name}.{suffix}")
            figure.savefig(made[-1], metadata={"Date": None} if suffix == "svg" else None)
            pyplot.close(figure)
    return made


def _latency(axes: Axes, tally: Tally) -> None:
    """Percentiles on an axis that stretches the tail, as HdrHistogram's plots do."""
    for colour, (measure, label) in zip(COLOURS, SHOWN.items(), strict=True):
        histogram = tally.histograms[measure]
        count = histogram.get_total_count()
        if count < 2:
            continue
        # Beyond 1 of count there is nothing but the greatest value.
        nines = np.linspace(0, np.log10(count), 200)
        values = [histogram.get_value_at_percentile(100 * (1 - 10**-n)) / 1e3 for n in nines]
        axes.plot(nines, values, color=colour, label=f"{label} ({count})")
    axes.set_yscale("log")
    axes.set_xticks(range(5), ["0%", "90%", "99%", "99.9%", "99.99%"])
    axes.set_xlabel("percentile")
    axes.set_ylabel("ms, from when it was due")


def _timeline(axes: Axes, tally: Tally) -> None:
    """How long the visits of each slice of time took, and which failed."""
    visits = tally.visits
    done = [(v.due_s, v.whole_s) for v in visits if v.whole_s is not None]
    if done and tally.counted_s:
        due_s, whole_s = np.array(done).T
        slice_s = max(tally.counted_s / SLICES, 1.0)
        numbers = ((due_s - tally.load.warmup_s) / slice_s).astype(int)
        for colour, share in zip(COLOURS, (50, 99), strict=False):
            slices = np.unique(numbers)
            middles = tally.load.warmup_s + (slices + 0.5) * slice_s
            values = [np.percentile(whole_s[numbers == n], share) for n in slices]
            axes.plot(middles, values, color=colour, label=f"whole visits, p{share}")
        axes.set_yscale("log")
    failed = [v.due_s for v in visits if v.failure]
    if failed:
        axes.plot(failed, [1e-3] * len(failed), "|", color=COLOURS[2], label="failed")
    axes.set_xlabel("due, seconds from the beginning")
    axes.set_ylabel("s, from when it was due")
