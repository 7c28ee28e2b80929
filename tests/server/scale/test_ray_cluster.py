"""A Ray cluster that is not the server's own: two doors on it, and a file that changes."""

import json
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis_process import free_port, redis_process, until
from server_model import make_model_folder
from server_process import HANG_S, Server, gone, serving

pytest.importorskip("ray", reason="Ray is not installed: pip install 'innerloop[ray]'")

from benchmarks.rollout import (
    KEY,
    Load,
    answers,
    deploy,
    limits,
    places,
    ray_cluster,
    ready,
    serve_file,
)

HEADERS = {"Authorization": f"Bearer {KEY}"}
ON_CLUSTER = {"INNERLOOP_REPLICAS": "1", "INNERLOOP_REPLICA_CPUS": "0.1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_model_folder(folder)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """Its folder has a short path, for the sockets in it."""
    short = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
    with short as name, ray_cluster(Path(name)) as environment:
        yield environment


class Deployed:
    """A configuration file that is live on the cluster."""

    def __init__(self, folder: Path, environment: dict[str, str], model: Path, redis: str) -> None:
        self.port = free_port()
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", timeout=HANG_S, headers=HEADERS
        )
        self._settings = {"redis_url": redis, "model": str(model), "threads": 1, "drain_s": 60}
        self._folder = folder
        self._environment = environment

    def change(self, rows: int, **scale: Any) -> None:
        settings = self._settings | {"rows": rows}
        path = serve_file(self._folder / "serve.yaml", self.port, settings, {"cpus": 0.1} | scale)
        deploy(path, self._environment)


@pytest.fixture(scope="module")
def deployed(
    cluster: dict[str, str], model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("deployed")
    with redis_process(folder / "redis") as redis:
        made = Deployed(folder, cluster, model, f"redis://127.0.0.1:{redis.port}/0")
        made.change(1, replicas=1, max_replicas=2, upscale_delay_s=1, downscale_delay_s=1)
        until(lambda: answers(made.http, "/readyz") and ready(made.http) == 1)
        yield made
        made.http.close()


def test_replicas_come_with_the_load_and_go_without_it(deployed: Deployed) -> None:
    with Load(deployed.http, 1, pause_s=0.5).running() as light:
        with Load(deployed.http, 6, tokens=48).running() as heavy:
            until(lambda: ready(deployed.http) == 2)
        until(lambda: ready(deployed.http) == 1)
    assert heavy.failed == []
    assert light.failed == []


def test_a_changed_file_is_live_without_a_failed_request(deployed: Deployed) -> None:
    deployed.change(1, replicas=2)
    until(lambda: limits(deployed.http) == {"1"})
    with Load(deployed.http, 3).running() as load:
        deployed.change(3, replicas=2)
        until(lambda: limits(deployed.http) == {"3"})
        before = load.done
        until(lambda: load.done > before + 3)
    assert load.failed == []


def test_what_a_full_replica_has_no_room_for_goes_to_the_next(deployed: Deployed) -> None:
    deployed.change(1, replicas=2)
    until(lambda: limits(deployed.http) == {"1"})
    # Full is above 1.25 of the mean; what the router has not heard of for ten seconds is no load.
    until(lambda: len(set(places(deployed.http, f"many-{time.monotonic_ns()}", 4))) == 2)


def door(
    stack: ExitStack,
    model: Path,
    folder: Path,
    cluster: dict[str, str],
    port: int = 0,
    **more: str,
) -> Server:
    folder.mkdir(exist_ok=True)
    found = {name: value for name, value in cluster.items() if name.startswith("RAY_")}
    extra = ON_CLUSTER | found | {"INNERLOOP_OPERATOR_KEYS": KEY} | more
    server = stack.enter_context(serving(model, folder / "data", port, warm=False, **extra))
    server.http.headers.update(HEADERS)
    return server


def test_two_doors_beside_a_file_are_two_servers(
    deployed: Deployed, model: Path, cluster: dict[str, str], tmp_path: Path
) -> None:
    with ExitStack() as stack:
        one = door(stack, model, tmp_path / "one", cluster)
        other = door(stack, model, tmp_path / "other", cluster, INNERLOOP_LOG_FORMAT="json")
        body = {"session_id": "s", "examples": [{"prompt": "Who?", "completion": "Jo."}]}
        assert one.http.post("/adapt", json=body).status_code == 200
        assert one.http.get("/sessions/s").json()["items"] == 1
        assert other.http.get("/sessions/s").status_code == 404  # each has a Redis of its own
        named = {"X-Request-ID": "by-a-replica"}
        asked = {"session_id": "t", "prompt": "Hello?", "max_tokens": 4}
        assert other.http.post("/generate", json=asked, headers=named).status_code == 200
        log = tmp_path / "other" / "log"
        until(lambda: "by-a-replica" in log.read_text())  # Ray brings it, in its own time
        redis_pid = one.redis_pid
        assert one.stop(signal.SIGTERM) == 0
        assert gone(redis_pid)
        assert ready(other.http) == 1
        assert other.stop(signal.SIGTERM) == 0
        assert ready(deployed.http)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
        (mine,) = [line for line in lines if line.get("request_id") == "by-a-replica"]
        assert (mine["route"], mine["session_id"]) == ("/generate", "t")
        assert "pid=" in mine["process"]


def test_a_door_that_was_killed_takes_its_replicas_over(
    deployed: Deployed, model: Path, cluster: dict[str, str], tmp_path: Path
) -> None:
    port, body = free_port(), {"session_id": "s", "prompt": "Who?", "max_tokens": 4}
    with ExitStack() as stack:
        first = door(stack, model, tmp_path / "door", cluster, port)
        lesson = {"session_id": "s", "examples": [{"prompt": "Who?", "completion": "Jo."}]}
        assert first.http.post("/adapt", json=lesson).status_code == 200
        first.process.kill()
        first.process.wait()
        again = door(stack, model, tmp_path / "door", cluster, port)
        assert again.http.get("/sessions/s").json()["items"] == 1
        assert again.http.post("/generate", json=body).status_code == 200
        assert ready(again.http) == 1
        assert again.stop(signal.SIGTERM) == 0
    assert ready(deployed.http)
