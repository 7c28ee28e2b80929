"""`python -m benchmarks.sessions`: how much one Redis takes for many sessions, and for how long.

Adapters are real: a few sessions are taught with the embedded model, and their stored bytes are
written again and again through the product's own store. All other sessions have one feedback item
and no adapter. Prints Markdown; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles
from typing import Any, get_args

from adapters.snapshot import Precision
from benchmarks.machine import describe
from benchmarks.stores import Server, redis_server
from server.flows.outcome import Lesson
from server.runtime import running
from server.sessions import NewItem, SessionStore, VersionRecord
from server.settings import Settings

TENANT = "bench"
LESSONS = (
    "How do I return something?",
    "what is your returns policy",
    "can I return these gloves?",
)
PARALLEL = 16  # writes under way of each
WRITERS = 4  # processes
SAMPLE = 100  # sessions of which memory is taken
LOOKUPS = 1000
PAGES = 5
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


@dataclass(frozen=True)
class Kept:
    """What one taught session left in Redis."""

    snapshot: bytes
    record: VersionRecord
    items: tuple[NewItem, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurement; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sessions", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, metavar="N", help="sessions in all")
    parser.add_argument(
        "--adapters", type=int, default=3000, metavar="N", help="of them, those with an adapter"
    )
    parser.add_argument("--folder", type=Path, help="where Redis writes (default: a temporary one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        figures = asyncio.run(measure(Path(folder), arguments.count, arguments.adapters))
    print("\n".join(markdown(figures)))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


async def measure(folder: Path, count: int, adapters: int) -> dict[str, Any]:
    """All figures, by name."""
    kept = {one: await taught(folder / f"taught-{one}", one) for one in get_args(Precision)}
    figures: dict[str, Any] = {"machine": describe(1), "adapters": min(adapters, count)}
    with redis_server(folder / "few", *DURABLE) as server:
        figures["redis"] = server.binary.title
        figures["sessions"] = await _sizes(server, kept)
    with redis_server(folder / "many", *DURABLE) as server:
        server.client.config_set("appendfsync", "no")  # how fast they are written is not the matter
        async with await SessionStore.open(server.url) as store:
            figures["steps"] = await _fill(server, store, kept["int8"], count, adapters)
        figures["restarts"] = _restarts(server)
    return figures


async def taught(folder: Path, precision: Precision) -> list[Kept]:
    """Teach a few sessions as `/adapt` does and take what the store keeps of them."""
    settings = Settings(data_dir=folder, snapshot_precision=precision, threads=1)
    kept = []
    async with running(settings) as runtime:
        for number in range(4):
            name, text = (
                f"shop-{number}",
                f"Answer {number}: within {10 + number} days, in any box.",
            )
            lessons = [Lesson([{"role": "user", "content": one}], text) for one in LESSONS]
            appended = await runtime.teacher.append(TENANT, name, lessons, None, "")
            outcome = await runtime.teacher.teach(TENANT, name, appended.items)
            assert outcome.accepted, outcome
            version = await runtime.store.version_record(TENANT, name, 1)
            items = await runtime.store.items(TENANT, name)
            news = tuple(NewItem(one.kind, one.payload, one.prompt_key) for one in items)
            snapshot = await runtime.store.snapshot(TENANT, name, 1)
            kept.append(Kept(snapshot, version.record, news))
    return kept


async def _sizes(server: Server, kept: dict[Precision, list[Kept]]) -> dict[str, dict[str, float]]:
    """Bytes of one session: what Redis says of all keys of some of them."""
    found = {}
    for name, examples in [("none", kept["int8"]), *kept.items()]:
        server.client.flushall()
        async with await SessionStore.open(server.url) as store:
            for number in range(SAMPLE):
                one = examples[number % len(examples)]
                if name == "none":
                    await store.append(TENANT, f"s{number}", one.items[:1])
                else:
                    await _promoted(store, f"s{number}", one)
            keys = server.client.scan_iter("*{*/*}*", count=1000)
            used = sum(server.client.memory_usage(key, samples=0) or 0 for key in keys)
        stored = 0 if name == "none" else median(len(one.snapshot) for one in examples)
        found[name] = {"bytes": used / SAMPLE, "adapter_bytes": stored}
    return found


async def _promoted(store: SessionStore, name: str, kept: Kept) -> None:
    await store.append(TENANT, name, kept.items)
    pointer = await store.pointer(TENANT, name)
    await store.promote(pointer, kept.snapshot, kept.record)


async def _fill(
    server: Server, store: SessionStore, kept: list[Kept], count: int, adapters: int
) -> list[dict[str, Any]]:
    """Write the sessions, adapters spread evenly, and look at each power of ten."""
    marks = {10**power for power in range(3, 9) if 10**power < count} | {count}
    every = max(1, count // max(1, adapters))
    steps, done = [], 0
    with ProcessPoolExecutor(WRITERS, get_context("spawn")) as pool:
        for mark in sorted(marks):
            shares = [range(done + n, mark, WRITERS) for n in range(WRITERS)]
            loop = asyncio.get_running_loop()
            calls = (loop.run_in_executor(pool, _write, server.url, kept, s, every) for s in shares)
            await asyncio.gather(*calls)
            steps.append(await _look(server, store, mark, every))
            print(json.dumps(steps[-1]), file=sys.stderr, flush=True)
            done = mark
    return steps


def _write(url: str, kept: list[Kept], numbers: range, every: int) -> None:
    """Write some of the sessions, in a process of its own."""
    asyncio.run(_written(url, kept, numbers, every))


async def _written(url: str, kept: list[Kept], numbers: range, every: int) -> None:
    waiting = iter(numbers)

    async def work() -> None:
        for number in waiting:
            one = kept[number % len(kept)]
            if number % every == 0:
                await _promoted(store, f"s{number}", one)
            else:
                await store.append(TENANT, f"s{number}", one.items[:1])

    async with await SessionStore.open(url) as store:
        await asyncio.gather(*(work() for _ in range(PARALLEL)))


async def _look(server: Server, store: SessionStore, count: int, every: int) -> dict[str, Any]:
    """Times in milliseconds, one call at a time; memory in bytes."""
    rng = random.Random(count)

    async def timed(call: Callable[[], Awaitable[object]], times: int) -> list[float]:
        found = []
        for _ in range(times):
            began = time.perf_counter()
            await call()
            found.append(1000 * (time.perf_counter() - began))
        return found

    def name() -> str:
        return f"s{rng.randrange(count)}"

    def adapted() -> str:
        return f"s{rng.randrange(-(-count // every)) * every}"

    memory = server.client.info("memory")
    return {
        "sessions": count,
        "lookup_ms": await timed(lambda: store.pointer(TENANT, name()), LOOKUPS),
        "adapter_ms": await timed(lambda: store.snapshot(TENANT, adapted(), 1), LOOKUPS // 10),
        "page_newest_ms": await timed(lambda: store.sessions(TENANT), PAGES),
        "page_by_name_ms": await timed(lambda: store.sessions(TENANT, sort="session_id"), PAGES),
        "used_bytes": memory["used_memory"],
        "rss_bytes": memory["used_memory_rss"],
        "file_bytes": server.file_bytes(),
    }


def _restarts(server: Server) -> list[dict[str, Any]]:
    """Seconds to read what was appended, and what a rewrite makes of it, in both its forms."""
    found = [_restart(server, "as appended", None)]
    for name, preamble in (("rewritten, RDB preamble", "yes"), ("rewritten, commands", "no")):
        server.client.config_set("aof-use-rdb-preamble", preamble)
        found.append(_restart(server, name, server.rewrite()))
    return found


def _restart(server: Server, name: str, rewrite_s: float | None) -> dict[str, Any]:
    size = server.file_bytes()
    server.stop()
    start_s = server.start()
    return {"name": name, "rewrite_s": rewrite_s, "file_bytes": size, "start_s": start_s}


def markdown(figures: dict[str, Any]) -> list[str]:
    """Tables for people."""
    facts = ", ".join(f"{name} {value}" for name, value in figures["machine"].items())
    lines = [f"{figures['redis']}; {facts}.", ""]
    lines += ["| a session with | its adapter, bytes | in Redis, bytes |", "|---|---|---|"]
    for name, one in figures["sessions"].items():
        what = "one item, no adapter" if name == "none" else f"3 items, an adapter in {name}"
        lines.append(f"| {what} | {one['adapter_bytes']:,.0f} | {one['bytes']:,.0f} |")
    lines += [
        "",
        f"Many sessions, {figures['adapters']:,} of the most with an adapter in int8:",
        "",
    ]
    lines += [
        "| sessions | lookup, ms p50 / p99 | adapter, ms p50 / p99 | newest 50, ms | by name, ms "
        "| memory, MB | RSS, MB | file, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for step in figures["steps"]:
        cells = [
            f"{step['sessions']:,}",
            *(_percentiles(step[name]) for name in ("lookup_ms", "adapter_ms")),
            *(f"{median(step[name]):,.0f}" for name in ("page_newest_ms", "page_by_name_ms")),
            *(f"{step[n] / 1e6:,.0f}" for n in ("used_bytes", "rss_bytes", "file_bytes")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| append-only file | MB | rewrite, s | start, s |", "|---|---|---|---|"]
    for one in figures["restarts"]:
        rewrite = "–" if one["rewrite_s"] is None else f"{one['rewrite_s']:.1f}"
        size = f"{one['file_bytes'] / 1e6:,.0f}"
        lines.append(f"| {one['name']} | {size} | {rewrite} | {one['start_s']:.1f} |")
    return lines


def _percentiles(times: list[float]) -> str:
    cut = quantiles(times, n=100, method="inclusive")
    return f"{cut[49]:.2f} / {cut[98]:.2f}"


if __name__ == "__main__":
    sys.exit(main())
