"""Where a large deployment bends first: policies, hot sessions, a lost replica, one Redis.

Everything it knows of a replica are the constants of `constants.py`; docs/capacity.md explains.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.fleet.constants import CONSTANTS
from benchmarks.fleet.model import Constants, Demand, arrivals_per_cpu_s
from benchmarks.fleet.simulation import POLICIES, Fleet, simulate

UTILISATION = 0.7
SIZES = (8, 64, 256)
ZIPFS = (0.0, 0.6, 0.8, 1.0, 1.2)
MIDDLE = 32  # replicas, where not their number is varied


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How large."""
    parser.add_argument("--sessions", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="numbers of replicas")
    parser.add_argument("--seconds", type=float, default=40, help="of each (default: %(default)s)")
    parser.add_argument("--save", type=Path, required=True, metavar="FOLDER", help="JSON and plots")


def run(args: argparse.Namespace) -> int:
    """Simulate, write a JSON and the plots, print a table."""
    demand = Demand(rate=1.0, sessions=args.sessions)
    base = Fleet(MIDDLE, "random", seconds=args.seconds)
    fleets = [replace(base, replicas=n, policy=p) for n in args.sizes for p in POLICIES]
    fleets += [replace(base, policy=p, zipf=z) for z in ZIPFS if z != base.zipf for p in POLICIES]
    middle = base.warmup_s + args.seconds / 2
    fleets += [replace(base, policy=p, zipf=0.8, lose_at_s=middle) for p in POLICIES]
    rows = [row(fleet, demand) for fleet in tqdm(fleets, disable=None)]
    args.save.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"constants": vars(CONSTANTS), "rows": rows}, indent=1)
    (args.save / "simulation.json").write_text(text + "\n")
    print(table(rows))
    plot(rows, args.save / "simulation.svg")
    return 0


def row(fleet: Fleet, demand: Demand, constants: Constants = CONSTANTS) -> dict[str, Any]:
    """One fleet, as busy in the mean as planned."""
    rate = fleet.replicas * UTILISATION * arrivals_per_cpu_s(demand, constants)
    found = simulate(fleet, replace(demand, rate=rate), constants)
    return vars(fleet) | {"rate": rate} | {name: round(value, 4) for name, value in found.items()}


SHOWN = (
    "replicas",
    "zipf",
    "policy",
    "visits_per_s",
    "done_share",
    "answer_p50_s",
    "answer_p99_s",
    "lesson_p99_s",
    "engine_busiest",
    "cold_share",
    "redis_share",
    "redis_read_mb_per_s",
    "resent",
)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [" | ".join(("", *SHOWN, "")).strip(), "|" + " --- |" * len(SHOWN)]
    for one in rows:
        cells = [f"{v:.3g}" if isinstance(v := one[name], float) else str(v) for name in SHOWN]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Latency against the number of replicas and against Zipf's exponent; adapters read."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sized = [one for one in rows if one["zipf"] == 1.0 and one["lose_at_s"] is None]
    hot = [one for one in rows if one["replicas"] == MIDDLE and one["lose_at_s"] is None]
    panels = (
        (sized, "replicas", "answer_p99_s", "answers, p99, s"),
        (hot, "zipf", "answer_p99_s", "answers, p99, s"),
        (sized, "replicas", "redis_share", "Redis, share of its core"),
    )
    with matplotlib.rc_context({"svg.hashsalt": "innerloop", "font.size": 9}):
        figure, places = pyplot.subplots(1, len(panels), figsize=(11, 3.4))
        for axes, (chosen, across, name, label) in zip(places, panels, strict=True):
            for policy in POLICIES:
                points = sorted((o[across], o[name]) for o in chosen if o["policy"] == policy)
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=policy)
            axes.set_yscale("log")
            axes.set_xlabel("Zipf's exponent" if across == "zipf" else across)
            axes.set_title(label, fontsize=10)
            axes.grid(alpha=0.3)
            if across == "replicas":
                axes.set_xscale("log", base=2)
        places[0].legend(fontsize=7, frameon=False)
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
