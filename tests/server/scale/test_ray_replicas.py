"""`innerloop serve --replicas 2` on a local Ray: what a client sees, and when a replica dies."""

import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest
from openai import OpenAI
from redis_process import until
from server_model import make_model_folder
from server_process import Server, gone, serving

pytest.importorskip("ray", reason="Ray is not installed: pip install 'innerloop[ray]'")

KEY = "operator-secret-key"
RANK = "x-innerloop-replica"
SETTINGS = {
    "INNERLOOP_REPLICAS": "2",
    "INNERLOOP_TAKEOVER_S": "1",
    "INNERLOOP_OPERATOR_KEYS": KEY,
    "INNERLOOP_MAX_BODY_BYTES": "65536",
}
LONG = [{"prompt": f"Question {n}?", "completion": "Yes, and no."} for n in range(24)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    make_model_folder(folder / "tiny")
    with serving(folder / "tiny", folder / "data", **SETTINGS) as up:
        up.http.headers["Authorization"] = f"Bearer {KEY}"
        yield up
        if up.process.poll() is None:
            up.stop(signal.SIGTERM)  # killed, it would take Ray's processes a while to notice


def readiness(http: httpx.Client) -> Any:
    """What is told once both are ready; one that is held up for some seconds is not counted."""
    told: dict[str, Any] = {}

    def both() -> bool:
        told.update(http.get("/readyz").json())
        return told.get("replicas_ready") == 2

    until(both, 0.2)
    return told


def metrics(http: httpx.Client) -> str:
    """Of those that answer within a few seconds."""
    return http.get("/metrics").text


def ask(http: httpx.Client, session: str, prompt: str = "Hello?") -> httpx.Response:
    body = {"session_id": session, "prompt": prompt, "max_tokens": 16}
    response = http.post("/generate", json=body)
    assert response.status_code == 200, response.text
    return response


def teach(http: httpx.Client, session: str, examples: list[dict[str, str]], **more: Any) -> Any:
    response = http.post("/adapt", json={"session_id": session, "examples": examples} | more)
    assert response.status_code == 200, response.text
    return response.json()


def test_both_are_ready_and_counted(server: Server) -> None:
    ready = readiness(server.http)
    assert (ready["status"], ready["replicas_ready"], ready["replicas"]) == ("ready", 2, 2)
    running = 'innerloop_engine_running{{replica="{}"}} 1.0'
    until(lambda: all(running.format(rank) in metrics(server.http) for rank in "01"))
    assert server.http.get("/metrics", headers={"Authorization": ""}).status_code == 401
    assert server.http.get("/healthz").json() == {"status": "ok"}


def test_a_session_stays_at_one_replica_however_it_is_named(server: Server) -> None:
    ranks: dict[str, set[str]] = {}
    for session in (f"stays-{n}" for n in range(16)):
        named = {"X-Session-ID": session}
        answers = [
            ask(server.http, session),
            server.http.post("/generate", json={"prompt": "Hello?"}, headers=named),
            server.http.get(f"/sessions/{session}"),
            server.http.get(f"/sessions/{session}/feedback"),
        ]
        ranks[session] = {answer.headers[RANK] for answer in answers}
    assert all(len(found) == 1 for found in ranks.values()), ranks
    assert set().union(*ranks.values()) == {"0", "1"}


def test_what_one_learned_the_other_answers(server: Server) -> None:
    told = teach(server.http, "shared", [{"prompt": "Where is it?", "completion": "In the barn."}])
    assert told["accepted"]
    seen = set()
    while len(seen) < 2:  # the header, which decides nothing else on this route, sends it to both
        elsewhere = {"X-Session-ID": f"other-{time.monotonic_ns()}"}
        body = {"prompt": "Where is it?", "max_tokens": 16}
        path = "/admin/sessions/shared/compare"
        answer = server.http.post(path, json=body, headers=elsewhere)
        told = answer.json()
        assert (told["session"]["text"], told["adapter_version"]) == ("In the barn.", 1)
        seen.add(answer.headers[RANK])


def test_openais_client_streams_through_it(server: Server) -> None:
    client = OpenAI(
        base_url=str(server.http.base_url).rstrip("/") + "/v1", api_key=KEY, max_retries=0
    )
    teach(server.http, "open", [{"prompt": "Where is it?", "completion": "In the barn."}])
    with client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Where is it?"}],
        stream=True,
        extra_headers={"X-Session-ID": "open"},
    ) as chunks:
        parts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(parts) == "In the barn."
    assert len(parts) > 2


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "kind"),
    [
        ("GET", "/nowhere", {}, 404, "not-found"),
        ("POST", "/generate", {"json": {"prompt": 3}}, 422, "invalid"),
        ("POST", "/generate", {"content": "{"}, 400, "malformed"),
        ("POST", "/generate", {"headers": {"Authorization": "Bearer no"}}, 401, "unauthorized"),
        ("POST", "/generate", {"json": {"prompt": "a" * 70_000}}, 413, "too-large"),
        ("PUT", "/generate", {}, 405, "method-not-allowed"),
    ],
)
def test_errors_are_those_of_one_server(
    server: Server, method: str, path: str, sent: dict[str, Any], status: int, kind: str
) -> None:
    sent = {"headers": {"content-type": "application/json"} | sent.pop("headers", {}), **sent}
    answer = server.http.request(method, path, **sent)
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{kind}")
    assert answer.headers["content-type"] == "application/problem+json"


def test_who_leaves_a_stream_leaves_the_replica_too(server: Server) -> None:
    for _ in range(12):  # a session has eight listeners at most
        while True:
            with server.http.stream("GET", "/sessions/left/events") as stream:
                if stream.status_code == 200:
                    assert next(stream.iter_lines()).startswith("id: ")
                    break
            time.sleep(0.05)


def test_replicas_that_stand_still_are_told_of_and_not_waited_for(
    server: Server, folder: Path
) -> None:
    found: dict[str, int] = {}
    while len(found) < 2:
        session = f"still-{time.monotonic_ns()}"
        rank = ask(server.http, session).headers[RANK]
        found[rank] = found.get(rank) or pid_of(folder / "log", session)
    for pid in found.values():
        os.kill(pid, signal.SIGSTOP)
    try:
        told = server.http.get("/readyz")
    finally:
        for pid in found.values():
            with suppress(ProcessLookupError):  # Serve may have replaced it
                os.kill(pid, signal.SIGCONT)
    assert told.status_code == 503
    assert "no replica answers" in told.json()["detail"]
    readiness(server.http)


def test_a_replica_killed_in_the_midst_loses_nothing(server: Server, folder: Path) -> None:
    session = "killed"
    teach(server.http, session, [{"prompt": "Where is it?", "completion": "In the barn."}])
    with ThreadPoolExecutor() as pool:
        lesson = pool.submit(teach, server.http, session, LONG, steps=20)
        begun = Event()
        listened = pool.submit(listen, server.http, session, begun)
        begun.wait()  # what had not begun would go on at another replica
        while server.http.get(f"/sessions/{session}").json()["items"] < 1 + len(LONG):
            time.sleep(0.01)
        os.kill(pid_of(folder / "log", session), signal.SIGKILL)
        assert ask(server.http, session, "Where is it?").json()["text"]
        told = lesson.result()
        assert "replica that had this request was lost" in listened.result()
    assert told["accepted"]
    assert told["items"] == list(range(2, 2 + len(LONG)))  # sent twice, taken once
    assert server.http.get(f"/sessions/{session}").json()["items"] == 1 + len(LONG)
    assert ask(server.http, session, LONG[0]["prompt"]).json()["text"] == "Yes, and no."
    readiness(server.http)
    ranks = re.compile(r'innerloop_engine_running{replica="(\d+)"}')
    until(lambda: set(ranks.findall(metrics(server.http))) == {"0", "1"})


def listen(http: httpx.Client, session: str, begun: Event) -> str:
    """All that the stream of a session's events says, to its end."""
    said = ""
    with http.stream("GET", f"/sessions/{session}/events", timeout=None) as stream:
        for text in stream.iter_text():
            said += text
            begun.set()
    return said


def pid_of(log: Path, session: str) -> int:
    """The process of the replica that has a session, by the lines that it writes."""
    lines: list[str] = []

    def written() -> bool:  # Ray brings them here, in its own time
        lines[:] = re.findall(rf"pid=(\d+)\) .* session_id={session} ", log.read_text())
        return bool(lines)

    until(written)
    return int(lines[-1])


def test_stopped_it_ends_streams_and_leaves_nothing_behind(server: Server) -> None:
    redis_pid = server.redis_pid
    with server.http.stream("GET", "/sessions/stopped/events", timeout=None) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("id: ")
        server.process.send_signal(signal.SIGTERM)
        assert not any("error" in line for line in lines)
    assert server.wait() == 0
    assert gone(redis_pid)
