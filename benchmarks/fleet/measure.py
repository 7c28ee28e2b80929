"""Measures the constants of `constants.py` on this machine, and checks what they predict.

CPU time is the server process' own, so that other work on the machine moves it little; rates are
the machine's, so that it moves them much. One server on one Redis, one thread.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import redis

from benchmarks.fleet.deployment import Served, one_redis, one_server
from benchmarks.fleet.model import Constants, Demand, arrivals_per_cpu_s
from innerloop import Client
from server.commands.load.http import Http
from server.commands.load.plan import Arrival, Kind, Load, arrivals
from server.commands.load.runner import delete_sessions, run_load
from server.commands.load.tally import Tally
from server.commands.load.texts import SHOP
from server.commands.load.visits import Visitors

SHARES = (0.3, 0.6, 0.8, 1.0, 1.2)
PROBES = 4
MOST_A_S = 100  # visits that the full server could answer a second, more than enough
PATIENCE_S = "10"  # of the server, so that a flood ends soon after it is over
MIX = Load(rate=1, duration_s=60, warmup_s=5, sessions=200, timeout_s=300)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How long each load lasts."""
    parser.add_argument("--seconds", type=float, default=60, help="of each load (default: 60)")
    parser.add_argument("--visitors", type=int, default=16, help="at once, that make it full")
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES, help="of the capacity")
    parser.add_argument("--save", type=Path, required=True, metavar="FILE", help="JSON")


def run(args: argparse.Namespace) -> int:
    """Measure, predict, check; prints and writes JSON."""
    mix = replace(MIX, duration_s=args.seconds)
    few = replace(mix, sessions=args.visitors, zipf=0, feedback=0)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="il-", dir="/tmp")))
        kept, url = stack.enter_context(one_redis(folder / "redis"))
        server = stack.enter_context(one_server(folder / "server", url, patience_s=PATIENCE_S))
        found: dict[str, Any] = {"load_1min_before": os.getloadavg()[0]}
        store = stack.enter_context(redis.Redis.from_url(url))
        found["redis"] = stored(store, server)
        found["cold"] = cold(folder, url, server)
        print(json.dumps(found), flush=True)
        found["ask"] = cost(server, kept, replace(few, adapts=0), args.visitors)
        found["lesson"] = cost(server, kept, replace(few, adapts=1), args.visitors)
        print(json.dumps(found), flush=True)
        found["points"] = [check(server, mix, found, share) for share in args.shares]
    found["load_1min_after"] = os.getloadavg()[0]
    args.save.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def stored(store: "redis.Redis", server: Served) -> dict[str, float]:
    """Bytes in Redis: of a session with one adapter, a further adapter, an item, a completion."""

    def used() -> float:  # by key: what connections hold comes and goes
        return float(sum(store.memory_usage(key, samples=0) or 0 for key in store.scan_iter()))

    lessons = [(str(e.prompt), e.completion) for e in SHOP]
    with Client(server.url, timeout_s=600) as client:
        sessions = [client.session(f"bytes-{n}") for n in range(PROBES)]
        sessions[0].adapt(lessons[:1])  # makes what there is once
        marks = [used()]
        for turn in range(3):
            for session in sessions[1:]:
                session.adapt(lessons[turn : turn + 1])
            marks.append(used())
        for session in sessions[1:]:
            session.generate("do you ship abroad?", max_tokens=32)
        marks.append(used())
        for session in sessions:
            session.delete()
    grown = [(after - before) / (PROBES - 1) for before, after in pairwise(marks)]
    return {
        "first_lesson_bytes": grown[0],
        "next_lesson_bytes": (grown[1] + grown[2]) / 2,
        "completion_bytes": grown[3],
    }


def cold(folder: Path, url: str, first: Served) -> dict[str, float]:
    """The penalty of a session whose adapter is not at its replica: a second one reads it."""
    with one_server(folder / "second", url) as second, Client(first.url, timeout_s=600) as teach:
        times: dict[str, list[float]] = {"cold": [], "warm": []}
        with Client(second.url, timeout_s=600) as ask, redis.Redis.from_url(url) as store:
            ask.session("warming").generate("do you ship abroad?", max_tokens=2)
            read = 0.0
            for n in range(PROBES):
                teach.session(f"cold-{n}").adapt([(str(SHOP[0].prompt), SHOP[0].completion)])
                sent = store.info("stats")["total_net_output_bytes"]
                for kind in ("cold", "warm"):
                    begun = time.monotonic()
                    next(
                        iter(ask.session(f"cold-{n}").stream("What is the weather?", max_tokens=2))
                    )
                    times[kind].append(time.monotonic() - begun)
                    if kind == "cold":
                        read += store.info("stats")["total_net_output_bytes"] - sent
        for n in range(PROBES):
            teach.session(f"cold-{n}").delete()
    return {
        "cold_first_token_s": median(times["cold"]),
        "warm_first_token_s": median(times["warm"]),
        "redis_bytes_read": read / PROBES,
        "server_rss_bytes": float(first.rss_bytes()),
    }


def cost(server: Served, kept: Served, load: Load, visitors: int) -> dict[str, float]:
    """CPU seconds of one visit where so many visitors come again as soon as they are answered.

    So the server is full and refuses nobody. Every session was taught before: an answer of an
    adapter takes more than one of the base. What is under way when the time begins and when it ends
    is about as much.
    """
    return asyncio.run(_full(server, kept, load, visitors))


async def _full(server: Served, kept: Served, load: Load, visitors: int) -> dict[str, float]:
    prefix = f"full-{time.monotonic_ns()}"
    planned = iter(arrivals(replace(load, rate=MOST_A_S)))
    ended = 0
    async with Http(server.url, None, load.timeout_s) as http:
        there = Visitors(http, load, SHOP, prefix, begun := time.monotonic())
        for number in range(load.sessions):
            await there.visit(Arrival(0.0, number, Kind.ADAPT, number))
        load = replace(load, warmup_s=load.warmup_s + time.monotonic() - begun)

        async def visitor() -> None:
            nonlocal ended
            while (now := time.monotonic() - begun) < load.whole_s:
                await there.visit(replace(next(planned), due_s=now))
                ended += 1

        async def mark(at_s: float) -> tuple[float, float, float, int]:
            await asyncio.sleep(begun + at_s - time.monotonic())
            return time.monotonic() - begun, server.cpu_s(), kept.cpu_s(), ended

        marks, *_ = await asyncio.gather(
            asyncio.gather(mark(load.warmup_s), mark(load.whole_s)),
            *(visitor() for _ in range(visitors)),
        )
    await delete_sessions(server.url, None, sorted(there.used), lambda: None)
    (t0, cpu0, redis0, done0), (t1, cpu1, redis1, done1) = marks
    done, tally = max(done1 - done0, 1), there.tally
    return {
        "visitors": visitors,
        "answered": done,
        "answered_per_s": done / (t1 - t0),
        "cpu_s_each": (cpu1 - cpu0) / done,
        "redis_cpu_s_each": (redis1 - redis0) / done,
        "cpu_share": (cpu1 - cpu0) / (t1 - t0),
        "tokens_each": sum(v.tokens for v in tally.visits) / max(len(tally.visits), 1),
        "failed": sum(tally.failures.values()),
        "load_1min": os.getloadavg()[0],
    }


def check(server: Served, mix: Load, found: dict[str, Any], share: float) -> dict[str, Any]:
    """A mixed load at a share of the rate that the pure ones predict."""
    constants = Constants(found["ask"]["cpu_s_each"], found["lesson"]["cpu_s_each"])
    demand = Demand(1.0, adapts=mix.adapts, feedback=mix.feedback)
    got = (found["ask"]["cpu_share"] + found["lesson"]["cpu_share"]) / 2
    capacity = arrivals_per_cpu_s(demand, constants) * got
    load = replace(mix, rate=capacity * share, seed=round(share * 100))
    cpu_s, begun = server.cpu_s(), time.monotonic()
    tally = loaded(server, load)
    took = time.monotonic() - begun
    summary = tally.summary()
    point = {
        "share": share,
        "predicted_capacity_per_s": capacity,
        "offered_per_s": summary["offered_per_s"],
        "achieved_per_s": summary["achieved_per_s"],
        "refused_503": summary["refused_by_server"],
        "failed": summary["failed"],
        "cpu_s_each": (server.cpu_s() - cpu_s) / max(len(tally.visits), 1),
        "cpu_share": (server.cpu_s() - cpu_s) / took,
        "drained_s": took - load.whole_s,
        "load_1min": os.getloadavg()[0],
        "constants": asdict(constants),
        "latencies": summary["latencies"],
    }
    print(json.dumps({k: v for k, v in point.items() if k != "latencies"}), flush=True)
    return point


def loaded(server: Served, load: Load) -> Tally:
    """Put a load on it and leave nothing behind."""
    prefix = f"load-{time.monotonic_ns()}"
    tally, used = asyncio.run(run_load(load, server.url, None, SHOP, prefix))
    asyncio.run(delete_sessions(server.url, None, sorted(used), lambda: None))
    return tally
