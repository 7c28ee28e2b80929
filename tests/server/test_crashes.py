"""Server and Redis killed at random moments under load, and every promise looked at afterwards.

``INNERLOOP_CRASH_CYCLES`` says how often, ``INNERLOOP_CRASH_SEED`` with which numbers: the same
seed draws the same requests and kills, though not the same moments between them.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis_process import free_port, until
from server_model import make_model_folder
from server_process import Server, serving

CYCLES = int(os.environ.get("INNERLOOP_CRASH_CYCLES", "5"))
SEED = int(os.environ.get("INNERLOOP_CRASH_SEED", "1"))
QUESTIONS = 6  # of a session: later feedback on the same one supersedes
PATIENCE_S = 600.0
SHARED = "shared"
AWAY = (httpx.TransportError,)


@dataclass
class Told:
    """A request whose answer says that its feedback is kept."""

    body: dict[str, Any]
    key: str
    answer: dict[str, Any]


@dataclass
class Ledger:
    """What one client was promised."""

    session: str
    told: list[Told] = field(default_factory=list)
    forgotten: set[int] = field(default_factory=set)
    version: int = 0  # that the last answer named
    generated: int = 0
    retried: int = 0


class Client:
    """Teaches, asks and forgets without a pause; sends a request again until it is answered."""

    def __init__(self, base_url: str, name: str, seed: int) -> None:
        self.own = Ledger(name)
        self.shared = Ledger(SHARED)  # others teach it too
        self._name = name
        self._rng = random.Random(seed)
        self._http = httpx.Client(base_url=base_url, timeout=PATIENCE_S)
        self._count = 0

    def work(self, stop: threading.Event) -> None:
        acts = [self._adapt, self._adapt, self._adapt_later, self._ask, self._correct, self._forget]
        while not stop.is_set():
            self._rng.choice(acts)(self._rng.choice([self.own, self.own, self.shared]))

    def _sent(self, ledger: Ledger, send: Callable[[], httpx.Response]) -> Any:
        """Send until there is an answer that is not the fault of a crash."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with suppress(*AWAY):
                response = send()
                if response.status_code in (200, 202):
                    return response.json()
                assert response.status_code == 503, response.text
                assert int(response.headers["retry-after"]) >= 1
            ledger.retried += 1
            assert time.monotonic() < deadline, "the server does not come back"
            time.sleep(0.05)

    def _adapt(self, ledger: Ledger, wait: bool = True) -> None:
        self._count += 1
        question = self._rng.randrange(QUESTIONS)
        example = {
            "prompt": f"{self._name} asks number {question}?",
            "completion": f"{self._name} said {self._count}.",
        }
        body = {"session_id": ledger.session, "examples": [example], "steps": 2, "wait": wait}
        key = f"{self._name}-{self._count}"
        headers = {"Idempotency-Key": key}
        answer = self._sent(ledger, lambda: self._http.post("/adapt", json=body, headers=headers))
        if not wait:
            answer["items"] = [int(answer["id"].rpartition("-")[2])]
        ledger.told.append(Told(body, key, answer))
        if wait:
            assert answer["accepted"], answer
            ledger.version = answer["adapter_version"]

    def _adapt_later(self, ledger: Ledger) -> None:
        self._adapt(ledger, wait=False)

    def _ask(self, ledger: Ledger) -> dict[str, Any]:
        body = {"session_id": ledger.session, "prompt": "Hello?", "max_tokens": 8}
        known = ledger.version
        answer = self._sent(ledger, lambda: self._http.post("/generate", json=body))
        ledger.generated += 1
        if ledger is self.own:  # of the shared one, others may have taken versions back
            assert answer["adapter_version"] >= known, "an answer older than what was acknowledged"
        return dict(answer)

    def _correct(self, ledger: Ledger) -> None:
        completion = self._ask(ledger)["id"]
        self._count += 1
        text = f"{self._name} said {self._count}."
        body = {"completion_id": completion, "correction": text, "rating": -1}
        # Without a key, what another client superseded meanwhile would count as told again.
        headers = {"Idempotency-Key": f"{self._name}-{self._count}"}
        answer = self._sent(
            ledger, lambda: self._http.post("/feedback", json=body, headers=headers)
        )
        shown = {"examples": [{"completion": text}]}
        ledger.told.append(Told(shown, "", answer))
        ledger.version = answer["adapter_version"]

    def _forget(self, ledger: Ledger) -> None:
        if not ledger.told:
            return
        item = self._rng.choice(ledger.told).answer["items"][0]
        path = f"/sessions/{ledger.session}/feedback/{item}"
        answer = self._sent(ledger, lambda: self._http.delete(path))
        ledger.forgotten.add(item)
        ledger.version = answer["adapter_version"]  # 0 where nothing is left to be taught by

    def close(self) -> None:
        self._http.close()


@pytest.mark.skipif(CYCLES == 0, reason="INNERLOOP_CRASH_CYCLES is 0")
def test_nothing_that_was_acknowledged_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data, port = tmp_path / "tiny", tmp_path / "data", free_port()
    make_model_folder(model)
    rng = random.Random(SEED)
    url = f"http://127.0.0.1:{port}"
    clients = [Client(url, f"client-{n}", rng.getrandbits(32)) for n in range(4)]
    kills = dict.fromkeys(("server", "redis", "both"), 0)
    with ExitStack() as stack:
        # What a Redis of its own left half done, a server finishes only after a while.
        soon = {"INNERLOOP_TAKEOVER_S": "1"}
        server = stack.enter_context(serving(model, data, port, **soon))
        for cycle in range(CYCLES):
            # At the end it is the server: a new one has to finish what is left.
            victim = "server" if cycle == CYCLES - 1 else rng.choice(list(kills))
            kills[victim] += 1
            with load(clients):
                time.sleep(rng.uniform(0.05, 2.5))
                kill(server, victim, redis_first=rng.random() < 0.5)
                if victim != "redis":
                    server = stack.enter_context(serving(model, data, port, **soon))
                time.sleep(rng.uniform(0.0, 1.0))
            for ledger in [c.own for c in clients] + [merged([c.shared for c in clients])]:
                check(server.http, ledger)
        assert server.stop(signal.SIGTERM) == 0
    for client in clients:
        client.close()
    told = sum(len(one.told) for c in clients for one in (c.own, c.shared))
    retried = sum(one.retried for c in clients for one in (c.own, c.shared))
    with capsys.disabled():
        print(f"\ncrashes: {kills}; feedback acknowledged {told}, sent again {retried}, lost 0")


def kill(server: Server, victim: str, redis_first: bool) -> None:
    """Kill with no warning."""
    redis, process = server.redis_pid, server.process.pid
    pids = {"server": [process], "redis": [redis], "both": [process, redis]}[victim]
    for pid in reversed(pids) if redis_first else pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if victim != "redis":
        server.wait()


def check(http: httpx.Client, ledger: Ledger) -> None:
    """Hold the server to everything that it acknowledged to the clients of a session."""
    where = f"/sessions/{ledger.session}"
    if not ledger.told:
        return
    quiet(http, where)
    total = read(http, where)["items"]
    listed = read(http, f"{where}/feedback", limit=1000, offset=0)["items"]
    for offset in range(1000, total, 1000):
        listed += read(http, f"{where}/feedback", limit=1000, offset=offset)["items"]
    by_id = {item["id"]: item for item in listed}
    texts = [item["completion"] for item in listed if "completion" in item]
    assert len(set(texts)) == len(texts), "an item was kept twice"
    for told in ledger.told:
        (number,) = told.answer["items"]
        item = by_id[number]
        if number in ledger.forgotten:
            assert item["status"] == "forgotten", item
            assert "completion" not in item
        else:
            assert item["status"] in ("applied", "superseded", "pending"), item
            assert item["completion"] == told.body["examples"][0]["completion"]
    replay(http, ledger)
    detail = read(http, f"/admin{where}")
    active = detail["adapter_version"]
    applied = {item["id"] for item in listed if item["status"] == "applied"}
    versions = {version["adapter_version"]: version for version in detail["versions"]}
    contained = set(versions[active]["items"] if active else [])
    assert contained >= applied if detail["pending_items"] else contained == applied
    gone = {item["id"] for item in listed if item["status"] == "forgotten"}
    for version in versions.values():
        assert not gone & set(version["items"]), "a version contains what was forgotten"
    body = {"session_id": ledger.session, "prompt": "Hello?", "max_tokens": 4}
    answer = answered(lambda: http.post("/generate", json=body)).json()
    assert answer["adapter_version"] == active


def replay(http: httpx.Client, ledger: Ledger) -> None:
    """The same request with the same key has the same answer, and changes nothing."""
    before = read(http, f"/sessions/{ledger.session}")
    for told in [one for one in ledger.told if one.key and one.body["wait"]][-5:]:
        headers = {"Idempotency-Key": told.key}
        again = answered(
            lambda told=told, headers=headers: http.post("/adapt", json=told.body, headers=headers)
        )
        assert again.json() == told.answer, again.text
    assert read(http, f"/sessions/{ledger.session}") == before


def quiet(http: httpx.Client, where: str) -> None:
    """Wait until the server has finished what a crash left half done."""
    until(lambda: not read(http, where)["pending_items"])


def answered(send: Callable[[], httpx.Response]) -> httpx.Response:
    """What is answered once nobody says "later": a Redis may be coming back still."""
    while (response := send()).status_code == 503:
        time.sleep(0.05)
    return response


def read(http: httpx.Client, path: str, **query: int) -> Any:
    return answered(lambda: http.get(path, params=query)).json()


def merged(ledgers: Sequence[Ledger]) -> Ledger:
    """One ledger of a session that several clients teach."""
    whole = Ledger(SHARED)
    for ledger in ledgers:
        whole.told += ledger.told
        whole.forgotten |= ledger.forgotten
    return whole


@contextmanager
def load(clients: Sequence[Client]) -> Iterator[None]:
    """Have clients work, each in a thread; what they were doing at the end is finished first."""
    stop = threading.Event()
    with ThreadPoolExecutor(len(clients)) as pool:
        work = [pool.submit(client.work, stop) for client in clients]
        try:
            yield
        finally:
            stop.set()
    for one in work:
        one.result()
