"""One server under a steady load for long: failures, latencies, and whether its memory grows."""

import argparse
import asyncio
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.fleet.deployment import Served, one_server
from server.commands.load import report
from server.commands.load.plan import Load
from server.commands.load.runner import run_load
from server.commands.load.tally import Tally
from server.commands.load.texts import SHOP

Samples = list[tuple[float, int, float, float]]
"""Seconds since the beginning, memory in bytes, CPU time in seconds, the machine's load."""
SAMPLE_S = 5.0
SETTLED = 1 / 3
"""Share of the time after which caches have filled and memory should stay."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How long, how much."""
    parser.add_argument("--rate", type=float, required=True, help="arrivals a second")
    parser.add_argument("--minutes", type=float, default=30, help="default: %(default)s")
    parser.add_argument("--sessions", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--save", type=Path, required=True, metavar="FOLDER", help="all results")


def run(args: argparse.Namespace) -> int:
    """Load a server of its own; prints the report and writes the folder."""
    load = Load(rate=args.rate, duration_s=args.minutes * 60, warmup_s=30, sessions=args.sessions)
    with (
        tempfile.TemporaryDirectory(prefix="innerloop-", dir="/tmp") as folder,
        one_server(Path(folder)) as server,
    ):
        tally, samples = asyncio.run(_loaded(server, load))
    summary = tally.summary() | {"server": memory(samples)}
    report.show(summary)
    print(json.dumps(summary["server"]))
    report.save(tally, summary, args.save, "svg")
    rows = "".join(f"{now:.1f},{rss},{cpu:.2f},{busy:.2f}\n" for now, rss, cpu, busy in samples)
    (args.save / "server.csv").write_text("at_s,rss_bytes,cpu_s,load_1min\n" + rows)
    return 0


def memory(samples: Samples) -> dict[str, Any]:
    """What became of the server's memory: its slope once settled, by least squares."""
    at_s, rss, cpu_s, busy = np.array(samples, dtype=np.float64).T
    late = at_s >= at_s[-1] * SETTLED
    slope, _ = np.polyfit(at_s[late], rss[late], 1)
    return {
        "rss_mb_first": round(rss[0] / 1e6, 1),
        "rss_mb_settled": round(rss[late][0] / 1e6, 1),
        "rss_mb_last": round(rss[-1] / 1e6, 1),
        "rss_slope_mb_per_hour": round(slope * 3600 / 1e6, 2),
        "cpu_share": round((cpu_s[-1] - cpu_s[0]) / (at_s[-1] - at_s[0]), 3),
        "machine_load_1min_median": round(float(np.median(busy)), 2),
    }


async def _loaded(server: Served, load: Load) -> tuple[Tally, Samples]:
    samples: Samples = []
    with tqdm(total=round(load.whole_s), unit="s", disable=None) as bar:

        def sample(now_s: float, under_way: int, tally: Tally) -> None:
            bar.n = min(round(now_s), bar.total)
            bar.set_postfix(under_way=under_way, failed=sum(tally.failures.values()))
            if not samples or now_s - samples[-1][0] >= SAMPLE_S:
                taken = (now_s, server.rss_bytes(), server.cpu_s(), os.getloadavg()[0])
                samples.append(taken)

        tally, _ = await run_load(load, server.url, None, SHOP, "soak", sample)
    return tally, samples
