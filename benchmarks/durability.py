"""`python -m benchmarks.durability`: what it costs that nothing acknowledged is lost.

The same requests to three servers, each on a redis-server of its own on the same disk: one that
writes nothing, one that syncs every second, one that syncs before it answers. They take turns, in
another order each round, so that other load on the machine meets all three. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from benchmarks.machine import describe
from benchmarks.stores import redis_server
from innerloop import Client

KINDS: dict[str, tuple[str, ...]] = {
    "no persistence": ("--appendonly", "no"),
    "appendfsync everysec": ("--appendonly", "yes", "--appendfsync", "everysec"),
    "appendfsync always": ("--appendonly", "yes", "--appendfsync", "always"),
}
TASKS: dict[str, Callable[[Client, str], object]] = {
    "`/adapt`, 1 example": lambda client, name: client.session(name).adapt(
        [(f"Where is order {name}?", "In the barn.")]
    ),
    "`/generate`, 16 tokens": lambda client, name: client.session(name).generate(
        "Where is my order?", max_tokens=16
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurement; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.durability", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60, metavar="N", help="after one to warm up")
    parser.add_argument("--folder", type=Path, help="where Redis writes (default: a temporary one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all times there too")
    arguments = parser.parse_args(argv)
    machine = describe(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        times = measure(Path(folder), arguments.rounds)
    print("\n".join(markdown(machine, times)))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"machine": machine, "seconds": times}, indent=1))
    return 0


def measure(folder: Path, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds by task and kind, round by round."""
    times = {task: {kind: list[float]() for kind in KINDS} for task in TASKS}
    rng = random.Random(1)
    with ExitStack() as stack:
        clients = {
            kind: stack.enter_context(_serving(folder / str(number), options))
            for number, (kind, options) in enumerate(KINDS.items())
        }
        for number in tqdm(range(rounds + 1), file=sys.stderr):
            for task, ask in TASKS.items():
                for kind in rng.sample(list(KINDS), len(KINDS)):
                    began = time.perf_counter()
                    ask(clients[kind], f"session-{number}")
                    if number:
                        times[task][kind].append(time.perf_counter() - began)
    return times


@contextmanager
def _serving(folder: Path, options: Sequence[str]) -> Iterator[Client]:
    """A server of the embedded model, as a process, on a Redis of its own."""
    with redis_server(folder, *options) as redis:
        command = [sys.executable, "-m", "server.cli", "serve", "--port", "0", "--threads", "1"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "--redis-url", redis.url, "--log-level", "warning"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert process.stdout is not None
        try:
            ready = process.stdout.readline().split()
            if not ready:
                raise RuntimeError((folder / "log").read_text())
            with Client(next(word for word in ready if word.startswith("http"))) as client:
                yield client
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()


def markdown(machine: dict[str, Any], times: dict[str, dict[str, list[float]]]) -> list[str]:
    """A table for people: medians, and the median of the ratios within a round."""
    lines = [", ".join(f"{name} {value}" for name, value in machine.items()) + ".", ""]
    lines += ["| request | Redis | ms, median | × no persistence |", "|---|---|---|---|"]
    for task, kinds in times.items():
        first = kinds["no persistence"]
        for kind, found in kinds.items():
            ratio = median(one / base for one, base in zip(found, first, strict=True))
            lines.append(f"| {task} | {kind} | {1000 * median(found):.1f} | {ratio:.2f} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
