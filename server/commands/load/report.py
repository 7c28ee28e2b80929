"""A load's outcome: lines for people, and the files of `--save`."""

import csv
import json
from collections.abc import Mapping
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from server.commands.load.plots import SHOWN, plot
from server.commands.load.tally import Measure, Tally, Visit
from server.commands.output import table

LATE_MS = 20.0
TOLD = {**SHOWN, Measure.SENT_LATE: "sent late, by this command"}


def show(summary: Mapping[str, Any]) -> None:
    """Print a summary."""
    load = summary["load"]
    cut = ", stopped by Ctrl-C" if summary["interrupted"] else ""
    print(
        f"{summary['arrivals']} arrivals in {summary['counted_s']:.1f} s{cut}, after "
        f"{load['warmup_s']:g} s of warm-up; {load['sessions']} sessions, Zipf {load['zipf']:g}"
    )
    kinds = ", ".join(f"{count} {kind}" for kind, count in summary["arrivals_by_kind"].items())
    print(f"what for: {kinds or 'nothing'}")
    print(
        f"offered {summary['offered_per_s']:.2f}/s, answered {summary['achieved_per_s']:.2f}/s in "
        f"that time with {summary['tokens_per_s']:.0f} tokens/s"
    )
    print(
        f"refused because full (503, 429): {summary['refused_by_server']}; failed: "
        f"{summary['failed']}; lessons that the guard refused: "
        f"{summary['lessons_refused_by_guard']}"
    )
    for kind, deeds in summary["failures"].items():
        where = ", ".join(f"{count} × {deed}" for deed, count in sorted(deeds.items()))
        print(f"  {kind}: {where}")
    print()
    _show_latencies(summary["latencies"])
    late = summary["latencies"][Measure.SENT_LATE]
    if late and late["p99"] > LATE_MS:
        print(
            f"\nThis command sent 1% of the arrivals over {late['p99']:.0f} ms late: its machine "
            "is too busy, and part of the latencies is its own."
        )


def _show_latencies(latencies: Mapping[str, Mapping[str, float] | None]) -> None:
    head = ("ms, from when it was due", "count", "p50", "p90", "p99", "p99.9", "max")
    rows = []
    for measure, label in TOLD.items():
        if found := latencies[measure]:
            numbers = [f"{found[name]:.1f}" for name in head[2:]]
            rows.append((label, int(found["count"]), *numbers))
    table(head, rows)


def save(tally: Tally, summary: Mapping[str, Any], folder: Path, suffix: str) -> list[Path]:
    """Write the summary, every visit, HdrHistogram's percentiles and the plots.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / "report.json"
    report.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    visits = folder / "visits.csv"
    with visits.open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(field.name for field in fields(Visit))
        rows.writerows(astuple(visit) for visit in tally.visits)
    made = [report, visits]
    for measure, histogram in tally.histograms.items():
        if histogram.get_total_count():
            made.append(folder / f"{measure}.hgrm")
            with made[-1].open("wb") as out_bytes:
                histogram.output_percentile_distribution(out_bytes, 1e3)
    return [*made, *plot(tally, folder, suffix)]
