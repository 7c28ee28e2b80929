"""`innerloop serve` as a process: start, refusals, Ctrl-C, kill -9, and what is there then."""

import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis_process import until
from server_model import make_model_folder
from server_process import HANG_S, Server, environment, gone, run, serving

from server.cli import main
from server.settings import Settings, flag, package_version, variable

EXAMPLES = [
    {"prompt": "Where is my order?", "completion": "In the barn."},
    {"prompt": "How can I track my parcel?", "completion": "In the barn."},
]
LONG_JOB = {
    "examples": [{"prompt": f"Question {n}?", "completion": "Yes, and no."} for n in range(24)],
    "steps": 30,
    "wait": False,
}
DRAIN = {"INNERLOOP_DRAIN_S": "3600"}  # what ends sooner was ended by what the test does


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_model_folder(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve") / "data"


def test_a_life(model: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(model, data, warm=False, **DRAIN) as server:
        body = {"session_id": "a", "examples": EXAMPLES}
        assert server.http.post("/adapt", json=body).json()["accepted"] is True
        adapter = server.http.get("/admin/sessions/a/export").content
        kind, query = {"content-type": "application/zip"}, {"session_id": "imported"}
        made = server.http.post("/sessions", params=query, content=adapter, headers=kind)
        assert made.status_code == 201
        _second_servers_are_refused(model, data, server.http.base_url.port, capsys)
        assert server.http.get("/readyz").status_code == 200
        redis_pid = server.redis_pid
        _ctrl_c_finishes_what_is_under_way(server)
    assert gone(redis_pid)

    with serving(model, data) as server:
        question = {"session_id": "a", "prompt": "Where is my order?", "max_tokens": 20}
        answer = server.http.post("/generate", json=question).json()
        assert (answer["text"], answer["adapter_version"]) == ("In the barn.", 1)
        answer = server.http.post("/generate", json={**question, "session_id": "imported"}).json()
        assert (answer["text"], answer["adapter_version"]) == ("In the barn.", 1)
        job = server.http.post("/adapt", json={"session_id": "b", **LONG_JOB})
        redis_pid = server.redis_pid
        server.process.kill()
        assert job.status_code == 202
        assert server.wait() == -signal.SIGKILL
    assert gone(redis_pid)

    with serving(model, data, **DRAIN) as server:
        result = _result_of(server, job.json()["id"])
        assert result["accepted"] is True
        assert (result["steps"], result["examples_used"]) == (30, 24)
        for number in range(64):  # more than is learned before the second signal
            server.http.post("/adapt", json={"session_id": f"c{number}", **LONG_JOB})
        redis_pid = server.redis_pid
        server.process.send_signal(signal.SIGTERM)
        port = server.http.base_url.port
        assert port is not None
        until(lambda: _refuses(port))  # two signals at once would be one
        assert server.stop(signal.SIGTERM) == 130
    assert gone(redis_pid)


def test_a_copy_of_the_running_servers_file_is_a_backup(model: Path, tmp_path: Path) -> None:
    question = {"session_id": "a", "prompt": "Where is my order?", "max_tokens": 20}
    with serving(model, tmp_path / "data") as server:
        body = {"session_id": "a", "examples": EXAMPLES}
        assert server.http.post("/adapt", json=body).json()["accepted"] is True
        (tmp_path / "restored").mkdir()
        for source in (tmp_path / "data").glob("appendonly*"):
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, tmp_path / "restored" / source.name)
        assert server.http.delete("/sessions/a").status_code == 204
        events = str(server.http.base_url.join("/sessions/a/events"))
        # Stopping closes the other client.
        with httpx.stream("GET", events, timeout=HANG_S) as told:
            lines = told.iter_lines()
            assert next(lines) == "id: 0-0"
            assert server.stop() == 0
            assert not [line for line in lines if "error" in line]  # it ended, and did not break
    with serving(model, tmp_path / "restored") as server:
        answer = server.http.post("/generate", json=question).json()
        assert (answer["text"], answer["adapter_version"]) == ("In the barn.", 1)
        assert server.stop() == 0


def _second_servers_are_refused(
    model: Path, data: Path, port: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["serve", "--model", str(model), "--data-dir", str(data), "--threads", "1"]
    for number, told in ((port, f"port {port} on 127.0.0.1 is in use"), (0, str(data))):
        assert main([*start, "--port", str(number)]) == 1
        shown = capsys.readouterr()
        assert shown.out == ""
        assert told in shown.err
        assert shown.err.count("\n") == 1


def _ctrl_c_finishes_what_is_under_way(server: Server) -> None:
    question = {"session_id": "a", "prompt": "Hello", "max_tokens": 150, "stream": True}
    with server.http.stream("POST", "/generate", json=question) as response:
        lines = response.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGINT)
        assert "event: done" in list(lines)
    assert server.wait() == 0


def _refuses(port: int) -> bool:
    """Whether the server takes no connections any more."""
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return True
    return False


def _result_of(server: Server, job: str) -> dict[str, Any]:
    path = f"/jobs/{job}"
    until(lambda: server.http.get(path).json()["status"] == "done")
    return dict(server.http.get(path).json()["result"])


@pytest.mark.parametrize(
    ("args", "extra", "code", "told"),
    [
        (["--port", "many"], {}, 2, "--port='many'"),
        (["--host", "0.0.0.0"], {}, 2, "INNERLOOP_API_KEYS"),
        ([], {"INNERLOOP_MODLE": "x"}, 2, "INNERLOOP_MODLE"),
        (
            ["--host", "203.0.113.7", "--model", "."],
            {"INNERLOOP_API_KEYS": "a:b"},
            1,
            "203.0.113.7",
        ),
        (["--port", "0", "--model", "/no/such/folder"], {}, 2, "--model='/no/such/folder'"),
        (["--port", "0"], {"INNERLOOP_MODEL": "nosuch"}, 2, "INNERLOOP_MODEL='nosuch'"),
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


def test_a_folder_that_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    folders = ["--data-dir", str(tmp_path / "data"), "--model", str(tmp_path / "model")]
    assert main(["serve", "--port", "0", *folders]) == 1
    assert "config.json" in capsys.readouterr().err


def test_help_lists_every_setting() -> None:
    shown = run("serve", "--help").stdout
    for name in Settings.model_fields:
        assert variable(name) in shown
        assert flag(name) in shown or name.endswith("_keys")
    for taken in ("--recall true|false", "--log-format text|json", "--tenant-tokens RATE"):
        assert taken in shown
    assert "(default: true)" in shown
    assert "serve" in run("--help").stdout
    assert run("--version").stdout == f"innerloop {package_version()}\n"
    assert run().returncode == 2
    assert run("nonsense").returncode == 2


def test_demo_without_a_server() -> None:
    result = run("demo", "--url", "http://127.0.0.1:9")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "innerloop serve" in result.stderr


LIGHT = """
import sys
for name in ("torch", "transformers", "sklearn"):
    sys.modules[name] = None  # importing it fails
from server.cli import main
sys.exit(main())
"""


def light(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`innerloop` where nothing that takes long can be imported."""
    command = [sys.executable, "-c", LIGHT, *arguments]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=HANG_S, check=False
    )


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("meta-train something", "train"),
        ("evaluate something", "train"),
        ("search something", "search"),
        ("select something --reference another", "train"),
    ],
)
def test_a_command_without_its_packages_says_what_to_install(command: str, extra: str) -> None:
    name, *arguments = command.split()
    done = light(name, *arguments)
    assert done.returncode == 1
    assert done.stderr == f"innerloop: {name} needs sklearn: pip install 'innerloop[{extra}]'\n"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("meta-train", "meta-sgd"),
        ("evaluate", "siamese"),  # a word that no line of the help is broken in
        ("search", "--trials"),
        ("select", "--reference"),
    ],
)
def test_help_comes_before_anything_that_takes_long(name: str, told: str) -> None:
    done = light(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert told in done.stdout
    assert light(name, "--nonsense").returncode == 2
