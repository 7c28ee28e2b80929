"""What several replicas on Ray Serve cost and bring: `python -m benchmarks.replicas`.

Servers run side by side, one plain and one for each number of replicas, each with a Redis of its
own, and are asked in turn, so that whatever else the machine does meets all of them. Every replica
has one thread. It prints medians and their ratios; what is compared is told before each figure.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

RANK = "x-innerloop-replica"
CLIENTS = 8
SESSIONS = 24
LESSON = [{"prompt": "do you ship abroad?", "completion": "Every parcel travels by balloon."}]
QUESTION = "can you send it to another country?"


@contextmanager
def serving(folder: Path, replicas: int | None) -> Iterator[httpx.Client]:
    """A server with so many replicas, or a plain one."""
    cpus = {} if replicas is None else {"INNERLOOP_REPLICAS": str(replicas)}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("INNERLOOP_")}
    quiet = {"INNERLOOP_LOG_LEVEL": "warning", "INNERLOOP_THREADS": "1", "INNERLOOP_PORT": "0"}
    command = [sys.executable, "-m", "server.cli", "serve", "--data-dir", str(folder)]
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        process = subprocess.Popen(
            command, env={**kept, **quiet, **cpus}, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[4]
        with httpx.Client(base_url=address, timeout=300) as client:
            yield client
    finally:
        process.terminate()
        process.wait()


def ask(client: httpx.Client, session: str, elsewhere: str | None = None) -> tuple[float, str]:
    """Seconds of one short answer, and which replica gave it."""
    body = {"session_id": session, "prompt": QUESTION, "max_tokens": 8, "min_tokens": 8}
    headers = {} if elsewhere is None else {"X-Session-ID": elsewhere}
    begin_s = time.perf_counter()
    answer = client.post("/generate", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return time.perf_counter() - begin_s, answer.headers.get(RANK, "")


def teach(client: httpx.Client, session: str, elsewhere: str | None = None) -> None:
    headers = {} if elsewhere is None else {"X-Session-ID": elsewhere}
    body = {"session_id": session, "examples": LESSON, "steps": 1}
    assert client.post("/adapt", json=body, headers=headers).status_code == 200


def burst(client: httpx.Client, requests: int) -> tuple[float, float]:
    """Answers a second of CLIENTS clients, and the share that went to the session's replica."""
    names = [f"load-{n % SESSIONS}" for n in range(requests)]
    begin_s = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(lambda name: ask(client, name)[1], names))
    per_s = requests / (time.perf_counter() - begin_s)
    home: dict[str, str] = {}
    hits = sum(home.setdefault(name, rank) == rank for name, rank in zip(names, found, strict=True))
    return per_s, hits / requests


def alternately(
    servers: dict[str, httpx.Client], rounds: int, work: Callable[[httpx.Client], float]
) -> dict[str, list[float]]:
    """``work`` on each server in turn, the order turned round every time."""
    found: dict[str, list[float]] = {name: [] for name in servers}
    for number in range(rounds):
        for name in list(servers)[:: 1 if number % 2 else -1]:
            found[name].append(work(servers[name]))
    return found


def cold(client: httpx.Client, number: int) -> tuple[float, float]:
    """Seconds of a taught session's first answer at the replica that taught it, and at another."""
    session = f"cold-{number}"
    teach(client, session)
    _, home = ask(client, session)
    warm_s, _ = ask(client, session)
    for attempt in range(64):
        cold_s, rank = ask(client, session, f"else-{number}-{attempt}")
        if rank != home:
            return warm_s, cold_s
    raise RuntimeError("every other session lives at the same replica")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--requests", type=int, default=48)
    args = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {
            name: stack.enter_context(serving(folder / f"data-{name}", replicas))
            for name, replicas in {"plain": None, "1": 1, "2": 2, "3": 3}.items()
        }
        for client in servers.values():
            teach(client, "one")
            for n in range(SESSIONS):
                ask(client, f"load-{n}")
        few = {name: servers[name] for name in ("plain", "1")}
        print("latency of one client, a taught session, 8 tokens; and of GET /sessions/one")
        for what, work in {
            "generate": lambda client: ask(client, "one")[0],
            "inspect": lambda client: client.get("/sessions/one").elapsed.total_seconds(),
        }.items():
            found = alternately(few, 8 * args.rounds, work)
            ratio = statistics.median(
                b / a for a, b in zip(found["plain"], found["1"], strict=True)
            )
            medians = {k: f"{1e3 * statistics.median(v):.1f} ms" for k, v in found.items()}
            print(f"  {what}: {medians}, median of the ratios {ratio:.2f}")
        print(f"answers a second of {CLIENTS} clients, {SESSIONS} sessions, 8 tokens each")
        rates = alternately(servers, args.rounds, lambda client: burst(client, args.requests)[0])
        for name, values in rates.items():
            ratios = [b / a for a, b in zip(rates["plain"], values, strict=True)]
            low, high = min(ratios), max(ratios)
            print(
                f"  {name}: {statistics.median(values):.1f}/s, to plain "
                f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})"
            )
        share = [burst(servers["3"], args.requests)[1] for _ in range(3)]
        print(f"share of answers by the session's own replica, 3 replicas: {min(share):.3f}")
        pairs = [cold(servers["2"], number) for number in range(2 * args.rounds)]
        ratio = statistics.median(b / a for a, b in pairs)
        warm_ms = 1e3 * statistics.median(a for a, _ in pairs)
        cold_ms = 1e3 * statistics.median(b for _, b in pairs)
        print(f"a session at home {warm_ms:.1f} ms, elsewhere {cold_ms:.1f} ms, ratio {ratio:.2f}")
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")


if __name__ == "__main__":
    main()
