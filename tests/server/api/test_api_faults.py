"""Redis away and back, lost and foreign snapshots, another base: nothing lost, the server alive."""

import json
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from api_calls import ANSWER, EXAMPLES, QUESTION, ask, events, ok, problem, teach
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis_process import until
from server_harness import LiveServer, make_settings
from server_model import make_model_folder

from adapters.artifact import load_artifact
from adapters.snapshot import dumps
from adapters.state import AdapterState
from server.sessions import NewItem, SessionStore, prompt_key
from server.sessions.binary import find_binary
from server.settings import Settings


class PlainRedis:
    """A redis-server that nobody starts again, so that it can be away."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = folder / "redis.sock"
        self.url = f"unix://{self._socket}"
        self.client = Redis.from_url(self.url)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [str(find_binary().path), "--port", "0", "--unixsocket", str(self._socket)]
        command += ["--dir", str(self._folder), "--appendonly", "yes", "--appendfsync", "always"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until(self._answers)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "redis-server ended"
        try:
            return bool(self.client.ping())
        except RedisConnectionError:
            return False

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainRedis]:
    server = PlainRedis(tmp_path_factory.mktemp("r"))
    server.start()
    yield server
    server.client.close()
    server.kill()


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "other"
    make_model_folder(folder, seed=1)
    return folder


@pytest.fixture
def settings(redis: PlainRedis, model_folder: Path, tmp_path: Path) -> Settings:
    return make_settings(model_folder, tmp_path, redis_url=redis.url)


def test_redis_away_and_back(redis: PlainRedis, settings: Settings) -> None:
    with LiveServer(settings) as live, live.client() as http:
        teach(http, "a")
        completion = ask(http, "a")["id"]
        redis.kill()
        body = {"session_id": "a", "examples": EXAMPLES}
        for stream in (False, True):
            question = {"session_id": "a", "prompt": QUESTION, "stream": stream}
            problem(http.post("/generate", json=question), 503)
        problem(http.post("/adapt", json=body), 503)
        problem(http.get("/sessions/a"), 503)
        problem(http.delete("/sessions/a/feedback/1"), 503)
        problem(http.post("/feedback", json={"completion_id": completion, "correction": "x"}), 503)
        assert "Redis" in problem(http.get("/readyz"), 503)["detail"]
        ok(http.get("/healthz"))
        ok(http.get("/admin/engine"))
        redis.start()
        ok(http.get("/readyz"))
        assert ok(http.get("/sessions/a"))["items"] == 2
        answer = ask(http, "a")
        assert (answer["text"], answer["adapter_version"]) == (ANSWER, 1)


def test_a_full_redis_says_so_and_quotes_no_key(redis: PlainRedis, settings: Settings) -> None:
    with LiveServer(settings) as live, live.client() as http:
        teach(http, "secret-name")
        redis.client.config_set("maxmemory", 1)
        try:
            body = {"session_id": "secret-name", "examples": EXAMPLES}
            told = problem(http.post("/adapt", json=body), 503)["detail"]
        finally:
            redis.client.config_set("maxmemory", 0)
        assert "is full" in told
        assert "secret-name" not in told
        assert "innerloop:" not in told


def test_engine_that_stops_in_the_middle_of_a_stream(settings: Settings) -> None:
    with LiveServer(settings) as live, live.client() as http:
        body = {"session_id": "cut", "prompt": QUESTION, "max_tokens": 170, "temperature": 1.0}
        answers = (http.post("/generate", json={**body, "seed": seed}).json() for seed in range(50))
        seed = next(i for i, answer in enumerate(answers) if answer["finish_reason"] == "length")
        long = {**body, "seed": seed, "stream": True}
        with live.held_after(60), http.stream("POST", "/generate", json=long) as response:
            lines = response.iter_lines()
            first = next(lines)
            live.call(live.runtime.engine.stop(0))
            name, document = events("\n".join([first, *lines]))[-1]
        assert (response.status_code, name) == (200, "error")
        assert (document["status"], document["type"]) == (503, "/problems/unavailable")
        problem(http.post("/generate", json=body), 503)
        document = problem(
            http.post("/adapt", json={"session_id": "cut", "examples": EXAMPLES}), 503
        )
        assert "GET /jobs/cut~1-2" in document["detail"]
        assert "engine" in problem(http.get("/readyz"), 503)["detail"]
        assert ok(http.get("/sessions/cut"))["pending_items"] == 2
        assert ok(http.get("/jobs/cut~1-2"))["status"] == "pending"


def test_more_than_the_engine_takes(settings: Settings) -> None:
    small = settings.model_copy(update={"rows": 1, "queue": 1})
    with LiveServer(small) as live, live.client() as http, ThreadPoolExecutor(12) as pool:
        body = {"session_id": "busy", "prompt": QUESTION, "max_tokens": 100, "temperature": 1.0}
        together = threading.Barrier(12)

        def send(_: int) -> httpx.Response:
            together.wait()
            return http.post("/generate", json=body)

        answers = list(pool.map(send, range(12)))
        answered = [answer for answer in answers if answer.status_code == 200]
        assert 1 <= len(answered) < 12
        for answer in answers:
            if answer not in answered:
                assert problem(answer, 503)["type"] == "/problems/busy"
        # Feedback waits for its turn.
        taught = pool.map(lambda name: teach(http, name), ("busy-1", "busy-2", "busy-3"))
        assert all(report["accepted"] for report in taught)


def test_lost_and_foreign_snapshots_are_derived_again(
    redis: PlainRedis, settings: Settings, model_folder: Path
) -> None:
    names = ("lost", "cut", "foreign")
    with LiveServer(settings) as live, live.client() as http:
        for name in names:
            teach(http, name)
    keys = {name: _snapshot_key(redis, name) for name in names}
    whole = redis.client.get(keys["cut"])
    assert isinstance(whole, bytes)
    artifact = load_artifact(model_folder)
    foreign = AdapterState(artifact.spec, artifact.session_init, "f" * 64)
    redis.client.delete(keys["lost"])
    redis.client.set(keys["cut"], whole[:-100])
    redis.client.set(keys["foreign"], dumps(foreign))
    with LiveServer(settings) as live, live.client() as http:
        for name in names:
            first = ask(http, name)
            assert (first["text"], first["adapter_version"]) == (ANSWER, 1), name
            assert redis.client.get(keys[name]) == whole


def test_another_base_derives_again_from_the_log(settings: Settings, other_model: Path) -> None:
    with LiveServer(settings) as live, live.client() as http:
        teach(http, "moved")
        base = ok(http.get("/readyz"))["base_fingerprint"]
    other = settings.model_copy(update={"model": str(other_model)})
    with LiveServer(other) as live, live.client() as http:
        answer = ask(http, "moved")
        assert (answer["text"], answer["adapter_version"]) == (ANSWER, 2)
        found = ok(http.get("/admin/sessions/moved"))
        assert [version["items"] for version in found["versions"]] == [[1, 2], [1, 2]]
        assert found["base_fingerprint"] != base
        old = {"session_id": "moved", "prompt": QUESTION, "adapter_version": 1}
        assert "another base" in problem(http.post("/generate", json=old), 409)["detail"]


def test_what_a_crash_left_pending_is_finished_at_the_start(settings: Settings) -> None:
    embedded = settings.model_copy(update={"redis_url": None})
    with LiveServer(embedded) as live:
        live.call(_append(live.runtime.store))
    with LiveServer(embedded) as live, live.client() as http:
        until(lambda: ok(http.get("/sessions/crashed"))["adapter_version"] == 1)
        assert ask(http, "crashed")["text"] == ANSWER
        assert ok(http.get("/jobs/crashed~1-2"))["result"]["accepted"] is True


async def _append(store: SessionStore) -> None:
    items = [_item(example) for example in EXAMPLES]
    await store.append("default", "crashed", items, "key", "hash")


def _item(example: dict[str, str]) -> NewItem:
    turns = [{"role": "user", "content": example["prompt"]}]
    payload = {"messages": turns, "completion": example["completion"], "activation_index": 3}
    return NewItem("demonstration", payload, prompt_key(turns))


def _snapshot_key(redis: PlainRedis, session: str, version: int = 1) -> str:
    root = f"innerloop:{{default/{session}}}:"
    envelope = redis.client.hget(root + "versions", str(version))
    return f"{root}snapshot:{json.loads(envelope)['snapshot']}"


def test_a_failure_of_the_engine_refuses_no_feedback(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been another request's memory that ran out: nobody's lesson is to blame."""
    with LiveServer(make_settings(model_folder, tmp_path)) as live, live.client() as http:
        said = ask(http, "a")
        worker = live.runtime.engine._worker
        prepare = worker._learner.prepare

        def once() -> None:
            if worker._learner.waiting:
                worker._learner.prepare = prepare
                raise RuntimeError("CUDA out of memory")
            prepare()

        worker._learner.prepare = once
        told = {"completion_id": said["id"], "correction": ANSWER}
        answer = http.post("/feedback", json=told)
        assert answer.status_code == 503, answer.text
        assert "CUDA" not in answer.text
        (item,) = ok(http.get("/sessions/a/feedback"))["items"]
        assert item["status"] == "pending"
        assert ok(http.post("/feedback", json=told))["accepted"]
        (item,) = ok(http.get("/sessions/a/feedback"))["items"]
        assert item["status"] == "applied"


def test_a_dead_engine_is_not_ready(model_folder: Path, tmp_path: Path) -> None:
    with LiveServer(make_settings(model_folder, tmp_path)) as live, live.client() as http:
        said = ask(http, "a")
        worker = live.runtime.engine._worker

        def broken() -> None:
            raise RuntimeError("device-side assert triggered")

        worker._traffic.admit = worker._traffic.sweep = broken
        told = {"completion_id": said["id"], "correction": ANSWER}
        for _ in range(2):
            assert (
                http.post("/generate", json={"session_id": "b", "prompt": QUESTION}).status_code
                == 503
            )
            assert http.post("/feedback", json=told).status_code == 503
        assert "the engine does not run" in http.get("/readyz").text
        assert http.get("/healthz").status_code == 200
        assert "innerloop_engine_running 0.0" in http.get("/metrics").text
        (item,) = ok(http.get("/sessions/a/feedback"))["items"]
        assert item["status"] == "pending", "another server, or this one started again, learns it"
