"""`innerloop serve` as a process: start, refusals, Ctrl-C, kill -9, and what is there afterwards."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from server_model import make_model_folder

ROOT = Path(__file__).parents[2]
EXAMPLES = [
    {"prompt": "Where is my order?", "completion": "In the barn."},
    {"prompt": "How can I track my parcel?", "completion": "In the barn."},
]
READY = re.compile(r"innerloop is ready at (http://\S+) \(model tiny\)\n")


def environment(**extra: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.upper().startswith("INNERLOOP_")}
    return {**kept, "PYTHONPATH": str(ROOT), "INNERLOOP_THREADS": "1", **extra}


def command(*args: str | Path) -> list[str]:
    return [sys.executable, "-m", "server.cli", *map(str, args)]


def run(*args: str | Path, **extra: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*args),
        env=environment(**extra),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


class Server:
    """A running `innerloop serve`."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path, data: Path) -> None:
        self.process = process
        self._log = log
        self._data = data
        assert process.stdout is not None
        line = process.stdout.readline()
        found = READY.fullmatch(line)
        assert found, f"not ready: {line!r}\n{log.read_text()}"
        self.http = httpx.Client(base_url=found[1], timeout=120)

    @property
    def redis_pid(self) -> int:
        """The child's process id, from the file that the data folder keeps."""
        record = next(self._data.glob("*.json"))
        return int(json.loads(record.read_text())["pid"])

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(timeout=120)
        self.http.close()
        assert self.process.stdout is not None
        assert self.process.stdout.read() == ""  # one line and no more
        self.process.stdout.close()
        return code


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_model_folder(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve") / "data"


@contextmanager
def serving(model: Path, data: Path) -> Iterator[Server]:
    log = data.parent / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command("serve", "--model", model, "--port", "0", "--data-dir", data),
            env=environment(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
    try:
        yield Server(process, log, data)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def gone(pid: int) -> bool:
    for _ in range(400):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_a_life(model: Path, data: Path) -> None:
    with serving(model, data) as server:
        url = str(server.http.base_url)
        body = {"session_id": "a", "examples": EXAMPLES}
        assert server.http.post("/adapt", json=body).json()["accepted"] is True
        _second_servers_are_refused(model, data, url)
        assert server.http.get("/readyz").status_code == 200
        redis_pid = server.redis_pid
        question = {"session_id": "a", "prompt": "Hello", "max_tokens": 150, "stream": True}
        with server.http.stream("POST", "/generate", json=question) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGINT)
            rest = list(lines)  # Ctrl-C lets a request that is under way finish
        assert "event: done" in rest
        assert server.wait() == 0
    assert gone(redis_pid)

    with serving(model, data) as server:
        question = {"session_id": "a", "prompt": "Where is my order?", "max_tokens": 20}
        answer = server.http.post("/generate", json=question).json()
        assert (answer["text"], answer["adapter_version"]) == ("In the barn.", 1)
        many = [{"prompt": f"Question {n}?", "completion": "Yes, and no."} for n in range(64)]
        body = {"session_id": "b", "examples": many, "steps": 50, "wait": False}
        job = server.http.post("/adapt", json=body)
        redis_pid = server.redis_pid
        server.process.kill()
        assert job.status_code == 202
        assert server.wait() == -signal.SIGKILL
    assert gone(redis_pid)

    with serving(model, data) as server:
        for _ in range(2000):
            done = server.http.get(f"/jobs/{job.json()['id']}").json()
            if done["status"] == "done":
                break
            time.sleep(0.05)
        assert done["result"]["accepted"] is True
        assert (done["result"]["steps"], done["result"]["examples_used"]) == (50, 64)
        redis_pid = server.redis_pid
        with server.http.stream(
            "POST", "/adapt", json={"session_id": "c", "examples": many, "steps": 50}
        ) as _:
            pass
        assert server.stop(signal.SIGTERM) == 0
    assert gone(redis_pid)


def _second_servers_are_refused(model: Path, data: Path, url: str) -> None:
    port = url.rpartition(":")[2].strip("/")
    same_port = run("serve", "--model", model, "--port", port, "--data-dir", data)
    assert same_port.returncode == 1
    assert same_port.stderr.count("\n") == 1
    assert f"port {port} on 127.0.0.1 is in use" in same_port.stderr
    same_folder = run("serve", "--model", model, "--port", "0", "--data-dir", data)
    assert same_folder.returncode == 1
    assert str(data) in same_folder.stderr.splitlines()[-1]
    assert same_port.stdout == same_folder.stdout == ""


def test_second_ctrl_c_ends_what_is_under_way(model: Path, data: Path) -> None:
    with serving(model, data) as server:
        redis_pid = server.redis_pid
        many = [{"prompt": f"Question {n}?", "completion": "Yes. " * 20} for n in range(64)]
        body = {"session_id": "d", "examples": many, "steps": 50, "wait": False}
        assert server.http.post("/adapt", json=body).status_code == 202
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        server.process.send_signal(signal.SIGINT)
        assert server.wait() in (0, 130)
    assert gone(redis_pid)


@pytest.mark.parametrize(
    ("args", "extra", "code", "told"),
    [
        (["--port", "many"], {}, 2, "--port='many'"),
        (["--host", "0.0.0.0"], {}, 2, "INNERLOOP_API_KEYS"),
        ([], {"INNERLOOP_MODLE": "x"}, 2, "INNERLOOP_MODLE"),
        (["--host", "203.0.113.7"], {"INNERLOOP_API_KEYS": "a:b"}, 1, "203.0.113.7"),
        (["--port", "0", "--model", "/no/such/folder"], {}, 2, "/no/such/folder"),
    ],
)
def test_what_cannot_start_says_so_in_one_line(
    args: list[str], extra: dict[str, str], code: int, told: str, tmp_path: Path
) -> None:
    result = run("serve", "--data-dir", tmp_path / "data", *args, **extra)
    assert result.returncode == code
    assert result.stdout == ""
    assert result.stderr.startswith("innerloop: ")
    assert result.stderr.count("\n") == 1
    assert told in result.stderr


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    result = run(
        "serve", "--port", "0", "--data-dir", tmp_path / "data", "--model", tmp_path / "model"
    )
    assert result.returncode == 1
    assert "config.json" in result.stderr.splitlines()[-1]


def test_help_lists_every_setting() -> None:
    from server.settings import Settings, flag, variable

    shown = run("serve", "--help").stdout
    for name in Settings.model_fields:
        assert variable(name) in shown
        assert flag(name) in shown or name.endswith("_keys")
    assert "serve" in run("--help").stdout
    assert run().returncode == 2
    assert run("nonsense").returncode == 2


def test_demo_without_a_server() -> None:
    result = run("demo", "--url", "http://127.0.0.1:9")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "innerloop serve" in result.stderr
