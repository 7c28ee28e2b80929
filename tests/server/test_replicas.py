"""Several `innerloop serve` on one Redis: what they share, and what a client notices when one goes.

The replicas are processes of their own and so is Redis; the proxy is nginx with the configuration
that docker/ ships.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from redis_process import free_port
from server_model import make_model_folder
from server_process import HANG_S, ROOT, Server, serving

from server.cli import main
from server.sessions.binary import find_binary

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
EXAMPLES = [
    {"prompt": "Where is my order?", "completion": "In the barn."},
    {"prompt": "How can I track my parcel?", "completion": "In the barn."},
]
LONG = [{"prompt": f"Question {n}?", "completion": "Yes, and no."} for n in range(24)]
KEY = "operator-secret-key"
HEADERS = {"Authorization": f"Bearer {KEY}"}
SETTINGS = {
    "INNERLOOP_TAKEOVER_S": "1",
    "INNERLOOP_SHUTDOWN_DELAY_S": "20",  # in which a test looks at one that stops
    "INNERLOOP_DRAIN_S": "600",
    "INNERLOOP_OPERATOR_KEYS": KEY,
    "INNERLOOP_LOG_FORMAT": "json",
    "INNERLOOP_LOG_LEVEL": "debug",
}


class Deployment:
    """Replicas `a` and `b` on ports that they keep, on one Redis."""

    def __init__(self, folder: Path, redis_url: str, stack: ExitStack) -> None:
        self.redis_url = redis_url
        self.model = folder / "tiny"
        make_model_folder(self.model)
        self.ports = dict(zip("ab", free_ports(), strict=True))
        self.up: dict[str, Server] = {}
        self._folder = folder
        self._stack = stack

    def start(self, name: str) -> Server:
        data = self._folder / name / "data"
        data.parent.mkdir(exist_ok=True)
        extra = {"INNERLOOP_REDIS_URL": self.redis_url, **SETTINGS}
        up = serving(self.model, data, self.ports[name], **extra)
        self.up[name] = self._stack.enter_context(up)
        self.up[name].http.headers.update(HEADERS)
        return self.up[name]

    def log(self, name: str) -> str:
        return (self._folder / name / "log").read_text()


def free_ports() -> tuple[int, int]:
    first = free_port()
    second = next(port for port in iter(free_port, None) if port != first)
    return first, second


@pytest.fixture(scope="module")
def external_redis() -> Iterator[str]:
    """A redis-server that belongs to no innerloop."""
    with tempfile.TemporaryDirectory(prefix="innerloop-", dir="/tmp") as folder:
        path = f"{folder}/redis.sock"
        options = ["--port", "0", "--unixsocket", path, "--appendonly", "yes", "--save", ""]
        process = subprocess.Popen(
            [str(find_binary().path), *options, "--logfile", f"{folder}/log"], cwd=folder
        )
        try:
            with redis.Redis(unix_socket_path=path) as client:
                while not answers(client):
                    assert process.poll() is None, Path(folder, "log").read_text()
                    time.sleep(0.02)
            yield f"unix://{path}"
        finally:
            process.terminate()
            process.wait()


def answers(client: "redis.Redis") -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory, external_redis: str
) -> Iterator[Deployment]:
    with ExitStack() as stack:
        made = Deployment(tmp_path_factory.mktemp("replicas"), external_redis, stack)
        with ThreadPoolExecutor() as pool:
            list(pool.map(made.start, "ab"))
        yield made
        for server in made.up.values():
            if server.process.poll() is None:
                server.process.kill()
                server.wait()


def post(http: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    response = http.post(path, json=body)
    assert response.status_code in (200, 202), response.text
    return dict(response.json())


def ask(http: httpx.Client, session: str, prompt: str) -> tuple[str, int]:
    answer = post(http, "/generate", session_id=session, prompt=prompt, max_tokens=20)
    return answer["text"], answer["adapter_version"]


def test_what_is_taught_on_one_is_answered_by_the_other_at_once(deployment: Deployment) -> None:
    a, b = (deployment.up[name].http for name in "ab")
    for version, completion in enumerate(("In the barn.", "With Jo."), 1):
        example = {"prompt": EXAMPLES[0]["prompt"], "completion": completion}
        told = post(a, "/adapt", session_id="s", examples=[example])
        assert told["adapter_version"] == version
        assert ask(b, "s", EXAMPLES[0]["prompt"]) == (completion, version)
        a, b = b, a


def test_they_know_of_each_other(deployment: Deployment) -> None:
    metrics = [server.http.get("/metrics").text for server in deployment.up.values()]
    # Whoever joined first hears of the other with a heartbeat.
    assert any("innerloop_replicas 2.0" in text for text in metrics)


def test_both_teach_one_session_at_once(deployment: Deployment) -> None:
    def teach(name: str) -> dict[str, Any]:
        example = {"prompt": f"Who is {name}?", "completion": f"{name} is here."}
        return post(deployment.up[name].http, "/adapt", session_id="both", examples=[example])

    with ThreadPoolExecutor() as pool:
        told = list(pool.map(teach, "ab"))
    assert sorted(item for one in told for item in one["items"]) == [1, 2]
    for server in deployment.up.values():
        assert ask(server.http, "both", "Who is a?")[0] == "a is here."
        assert ask(server.http, "both", "Who is b?")[0] == "b is here."
        items = server.http.get("/sessions/both/feedback").json()["items"]
        assert {item["status"] for item in items} == {"applied"}


def test_what_a_killed_one_left_the_other_finishes(deployment: Deployment) -> None:
    killed, other = deployment.up["a"], deployment.up["b"].http
    for number in itertools.count():  # it may be done before it can be left
        session = f"left-{number}"
        job = post(killed.http, "/adapt", session_id=session, examples=LONG, steps=20, wait=False)
        killed.process.send_signal(signal.SIGSTOP)
        assert job["status"] == "pending"
        if other.get(f"/jobs/{job['id']}").json()["status"] == "pending":
            break
        killed.process.send_signal(signal.SIGCONT)
    killed.process.kill()
    assert killed.wait() == -signal.SIGKILL
    while (found := other.get(f"/jobs/{job['id']}").json())["status"] == "pending":
        time.sleep(0.1)
    assert found["result"]["accepted"] is True
    assert found["result"]["examples_used"] == len(LONG)
    assert ask(other, session, LONG[0]["prompt"]) == ("Yes, and no.", 1)


def test_the_log_names_requests_and_never_what_they_say(deployment: Deployment) -> None:
    http = deployment.up["b"].http
    secrets = ["Xylophone", "Quagmire", "Zeppelin", "Vermicelli", KEY]
    named = {"X-Request-ID": "my-request-1"}
    body = {"session_id": "hush", "prompt": "Where is Xylophone?", "max_tokens": 8}
    answer = http.post("/generate", json=body, headers=named)
    assert answer.headers["x-request-id"] == "my-request-1"
    taught = [{"prompt": "Where is Xylophone?", "completion": "At Quagmire."}]
    post(http, "/adapt", session_id="hush", examples=taught)
    assert ask(http, "hush", "Where is Xylophone?")[0] == "At Quagmire."
    post(http, "/feedback", completion_id=answer.json()["id"], correction="No, at Zeppelin.")
    http.post("/generate", content='{"prompt": "Vermicelli')
    http.post("/generate", json={"session_id": "hush", "prompt": 3, "Vermicelli": "Vermicelli"})
    http.get("/sessions/hush?Vermicelli=Vermicelli")
    http.get("/Vermicelli", headers={"Authorization": "Bearer Vermicelli"})
    text = deployment.log("b")
    for secret in secrets:
        assert secret not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    assert {"uvicorn.error", "server.access", "server.runtime"} <= {x["logger"] for x in lines}
    requests = [line for line in lines if line["logger"] == "server.access"]
    (mine,) = [line for line in requests if line.get("request_id") == "my-request-1"]
    assert (mine["method"], mine["route"], mine["status"]) == ("POST", "/generate", 200)
    assert (mine["session_id"], mine["tenant"]) == ("hush", "default")
    assert mine["duration_ms"] >= mine["first_byte_ms"] > 0
    (inspected,) = [line for line in requests if line.get("route") == "/sessions/{session_id}"]
    assert inspected["session_id"] == "hush"


def test_a_replica_with_another_model_is_refused_beside_them(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model_folder(tmp_path / "other", seed=1)
    start = ["serve", "--port", "0", "--model", str(tmp_path / "other")]
    assert main([*start, "--redis-url", deployment.redis_url]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "serves tiny (base" in shown.err
    assert "this one would serve other (base" in shown.err
    assert "INNERLOOP_ALLOW_MIXED" in shown.err


@contextmanager
def nginx(deployment: Deployment, folder: Path) -> Iterator[str]:
    """The configuration of docker/ before the replicas; gives its address."""
    assert NGINX is not None
    port = free_port()
    text = (ROOT / "docker" / "nginx.conf").read_text()
    for name, own in deployment.ports.items():
        assert f"replica-{name}:8000" in text
        text = text.replace(f"replica-{name}:8000", f"127.0.0.1:{own}")
    text = text.replace("listen 8080;", f"listen 127.0.0.1:{port};").replace("/tmp/", f"{folder}/")
    text = text.replace("error_log stderr", f"error_log {folder}/error")
    config = folder / "nginx.conf"
    config.write_text(text)
    command = [NGINX, "-p", str(folder), "-c", str(config), "-e", str(folder / "error")]
    done = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    process = subprocess.Popen([*command, "-g", "daemon off;"], stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        while True:
            try:
                assert httpx.get(url + "/nginx-health", timeout=HANG_S).status_code == 204
                break
            except httpx.ConnectError:
                assert process.poll() is None
                time.sleep(0.02)
        yield url
    finally:
        process.terminate()
        process.wait()


class Load:
    """Clients of a proxy that never stop, and whatever went wrong for one."""

    def __init__(self, url: str) -> None:
        self.done = {"whole": 0, "stream": 0, "adapt": 0}
        self._url = url
        self._stop = threading.Event()
        self._work: list[Future[None]] = []

    def _client(self, kind: str, number: int) -> None:
        session, count = f"{kind}-{number}", 0
        with httpx.Client(base_url=self._url, timeout=HANG_S, headers=HEADERS) as http:
            http.headers["X-Session-ID"] = session
            while not self._stop.is_set():
                count += 1
                if kind == "adapt":
                    example = {"prompt": f"Number {count % 4}?", "completion": f"It is {count}."}
                    post(http, "/adapt", session_id=session, examples=[example], steps=1)
                else:
                    body = {"session_id": session, "prompt": "Hello?", "max_tokens": 8}
                    wanted = kind == "stream"
                    response = http.post("/generate", json=body | {"stream": wanted})
                    assert response.status_code == 200, response.text
                    assert not wanted or "event: done" in response.text, response.text
                self.done[kind] += 1  # one thread a kind writes it

    @contextmanager
    def running(self) -> Iterator[None]:
        with ThreadPoolExecutor() as pool:
            self._work = [pool.submit(self._client, kind, 0) for kind in self.done]
            try:
                yield
            finally:
                self._stop.set()
        for one in self._work:
            one.result()

    def goes_on(self) -> None:
        """Return when every client was answered once more."""
        before = dict(self.done)
        while any(self.done[kind] == before[kind] for kind in before):
            for one in self._work:
                if one.done():
                    one.result()
            time.sleep(0.02)


@pytest.mark.skipif(NGINX is None, reason="no nginx on PATH")
def test_no_client_notices_a_start_or_a_stop(deployment: Deployment, tmp_path: Path) -> None:
    with nginx(deployment, tmp_path) as url:
        load = Load(url)
        with load.running():
            load.goes_on()  # the other one was killed: its connections are refused
            deployment.start("a")
            load.goes_on()
            stopping = deployment.up["b"]
            stopping.process.send_signal(signal.SIGTERM)
            while (ready := stopping.http.get("/readyz")).status_code == 200:
                time.sleep(0.02)
            assert ready.status_code == 503
            assert "stopping" in ready.json()["detail"]
            assert ready.headers["connection"] == "close"
            ask(stopping.http, "late", "Hello?")  # who was not told yet is answered
            assert stopping.wait() == 0
            load.goes_on()
    assert all(load.done.values())
