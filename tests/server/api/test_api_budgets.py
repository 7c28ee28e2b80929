"""Budgets of compute: charged when the work is done, by tenant and by session, on every replica."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from api_calls import EXAMPLES, QUESTION, ask, ok, problem, teach
from redis_process import until
from server_harness import LiveServer, make_settings

KEYS = "acme:acme-key,globex:globex-key,third:third-key"


@pytest.fixture(scope="module")
def budgeted(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[LiveServer]:
    budgets = {
        "session_tokens": "1/d:60",
        "tenant_tokens": "1/d:150",
        "session_learning": "1/d:500",
        "tenant_learning": "1/d:3000",
    }
    settings = make_settings(
        model_folder,
        tmp_path_factory.mktemp("data"),
        api_keys=KEYS,
        operator_keys="operator-key",
        **budgets,
    )
    with LiveServer(settings) as server:
        yield server


def of(server: LiveServer, key: str, **headers: str) -> httpx.Client:
    return server.client(headers={"Authorization": f"Bearer {key}", **headers})


def spent(server: LiveServer, what: str, session: str | None, tenant: str) -> int:
    """How much of a bucket did not come back yet."""
    keys = server.runtime.store._room.keys
    found = server.call(
        server.runtime.store._room.connection.read("GET", keys.rate(tenant, what, session))
    )
    full_us = 0 if found is None else int(found.partition(b":")[0])
    return max(0, round((full_us / 1e6 - time.time()) / 86400))


def test_tokens_are_charged_when_they_were_answered(budgeted: LiveServer) -> None:
    with of(budgeted, "acme-key") as http, of(budgeted, "operator-key") as operator:
        answer = ask(http, "a", max_tokens=8)
        used = answer["usage"]
        cost = used["prompt_tokens"] - used["cached_tokens"] + used["completion_tokens"]
        assert spent(budgeted, "tokens", "a", "acme") == cost
        assert spent(budgeted, "tokens", None, "acme") == cost
        ask(http, "a", max_tokens=60, min_tokens=60)  # something was left, and it may owe the rest
        refused = http.post("/generate", json={"session_id": "a", "prompt": QUESTION})
        detail = problem(refused, 429)["detail"]
        assert f"session has spent {spent(budgeted, 'tokens', 'a', 'acme')} tokens" in detail
        assert int(refused.headers["retry-after"]) > 3600
        ok(http.get("/sessions/a"))
        ask(http, "b", max_tokens=60, min_tokens=60)
        ask(http, "c", max_tokens=60, min_tokens=60)
        refused = http.post("/generate", json={"session_id": "d", "prompt": QUESTION})
        assert "tenant has spent" in problem(refused, 429)["detail"]
        acting = {"X-Tenant": "acme"}
        body = {"session_id": "d", "prompt": QUESTION, "max_tokens": 2}
        ok(operator.post("/generate", json=body, headers=acting))


def test_choices_cost_what_is_scored(budgeted: LiveServer) -> None:
    with of(budgeted, "third-key") as http:
        told = ask(http, "a", choices=["Where is my order? " * 3, "no", "yes"])
        before = told["usage"]["prompt_tokens"] - told["usage"]["cached_tokens"]
        assert told["text"] in ("no", "yes")
        assert spent(budgeted, "tokens", "a", "third") > before + 10


def test_who_leaves_a_stream_pays_for_what_was_written(budgeted: LiveServer) -> None:
    body = {"session_id": "left", "prompt": QUESTION, "max_tokens": 90, "stream": True}
    body["min_tokens"] = 90
    with of(budgeted, "third-key") as http:
        with http.stream("POST", "/generate", json=body) as response:
            next(response.iter_text())
        until(lambda: spent(budgeted, "tokens", "left", "third") > 0)


def test_learning_is_charged_by_tokens_and_steps(budgeted: LiveServer) -> None:
    with of(budgeted, "globex-key") as http:
        body = {"session_id": "a", "examples": EXAMPLES, "steps": 1, "dry_run": True}
        ok(http.post("/adapt", json=body))
        one = spent(budgeted, "learning", "a", "globex")
        ok(http.post("/adapt", json=body | {"steps": 3}))
        assert spent(budgeted, "learning", "a", "globex") == 4 * one
        teach(http, "a")
        document = problem(http.post("/adapt", json={"session_id": "a", "examples": EXAMPLES}), 429)
        assert "inner steps" in document["detail"]
        assert ok(http.get("/sessions/a"))["items"] == 2, "nothing was kept"
        assert http.delete("/sessions/a/feedback/1").status_code == 200, "it may always forget"
        before = spent(budgeted, "learning", None, "globex")
        ok(http.post("/house/adapt", json={"examples": EXAMPLES[:1]}))
        assert spent(budgeted, "learning", None, "globex") > before
        assert not spent(budgeted, "learning", "~house", "globex")


def test_without_budgets_nothing_is_counted(live: LiveServer, session: str) -> None:
    with live.client() as http:
        ask(http, session)
        teach(http, session)
    assert not spent(live, "tokens", None, "default")
    assert not spent(live, "learning", session, "default")
