"""Rates, pages of other hosts, what tenants can tell about each other, and what the log says."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from api_calls import EXAMPLES, QUESTION, ask, ok, problem, teach
from openai import OpenAI, RateLimitError
from server_harness import LiveServer

from server.rates import Rate, parse_rate

Enter = Callable[..., httpx.Client]
GUARDED, LIMITED, SHARED = range(3)


def test_rates(enter: Enter, guarded: LiveServer) -> None:
    """Three requests of a session, five of its tenant, then nothing for most of an hour."""
    http = enter("globex-key", LIMITED)
    for _ in range(3):
        ask(http, "limited-a")
    refused = http.get("/sessions/limited-a")
    assert "session" in problem(refused, 429)["detail"]
    assert 0 < int(refused.headers["retry-after"]) <= 3600
    for _ in range(5):
        problem(http.get("/sessions/limited-a"), 429)  # what is refused is not counted
    text = ok(enter("globex-key").post("/sessions/limited-b/tokens"), 201)["token"]
    page = enter(text, LIMITED)
    ok(page.post("/generate", json={"prompt": QUESTION, "max_tokens": 4}))
    chat: Any = {
        "model": "tiny-test",
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 4,
    }
    with OpenAI(base_url=f"{guarded.urls[LIMITED]}/v1", api_key=text, max_retries=0) as client:
        client.chat.completions.create(**chat)
        with pytest.raises(RateLimitError, match="tenant") as caught:
            client.chat.completions.create(**chat)
    assert caught.value.code == "rate-limited"
    assert int(caught.value.response.headers["retry-after"]) > 0
    problem(page.get("/sessions/limited-b"), 429)
    problem(http.post("/sessions", json={}), 429)
    acting = enter("operator-key", LIMITED, **{"X-Tenant": "globex"})
    ok(acting.get("/sessions/limited-a"))  # operators are not held up
    ok(enter("globex-key").get("/sessions/limited-a"))  # nor is a server without rates


def test_a_budget_of_feedback(enter: Enter) -> None:
    http = enter("acme-key", LIMITED)
    three = [*EXAMPLES, {"prompt": "a", "completion": "b"}]
    body = {"session_id": "budget", "examples": three}
    document = problem(http.post("/adapt", json=body), 422)
    assert "at most 2" in document["detail"]
    teach(http, "budget")
    problem(http.post("/adapt", json={"session_id": "budget", "examples": three[:1]}), 429)
    assert ok(enter("acme-key").get("/sessions/budget"))["items"] == 2


@pytest.mark.parametrize(
    ("text", "rate"),
    [("5/s", Rate(5, 5)), ("120/m:7", Rate(2, 7)), (" 1/h:3", Rate(1 / 3600, 3))],
)
def test_rates_are_read(text: str, rate: Rate) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "5", "0/s", "5/w", "-1/s", "5/s:0", "1e3/s", "9999999/s"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="50/s:200"):
        parse_rate(text)


def test_pages_of_other_hosts(enter: Enter) -> None:
    asking = {"Access-Control-Request-Method": "POST"}
    asking |= {"Access-Control-Request-Headers": "authorization,content-type"}
    shop, evil = {"Origin": "https://shop.example"}, {"Origin": "https://evil.example"}
    without, named = enter(None), enter(None, SHARED)
    assert "access-control-allow-origin" not in without.options("/generate", headers=shop).headers
    allowed = named.options("/generate", headers=shop | asking)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://shop.example"
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    refused = named.get("/sessions/a", headers=shop)
    assert refused.headers["access-control-allow-origin"] == "https://shop.example"
    problem(refused, 401)  # a page reads why
    for response in (
        named.options("/generate", headers=evil | asking),
        named.get("/", headers=evil),
    ):
        assert "access-control-allow-origin" not in response.headers
    for response in (allowed, refused):
        assert "access-control-allow-credentials" not in response.headers


ROUTES: list[tuple[str, str, dict[str, Any] | None]] = [
    ("GET", "/sessions/NAME", None),
    ("DELETE", "/sessions/NAME", None),
    ("GET", "/sessions/NAME/feedback", None),
    ("GET", "/sessions/NAME/feedback/1", None),
    ("DELETE", "/sessions/NAME/feedback/1", None),
    ("GET", "/jobs/NAME~1-2", None),
    ("POST", "/sessions", {"fork": {"session_id": "NAME"}}),
    ("POST", "/generate", {"session_id": "NAME", "prompt": "a", "adapter_version": 1}),
    ("POST", "/feedback", {"completion_id": "COMPLETION", "rating": 1}),
]


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_another_tenants_session_is_like_none(
    method: str, path: str, body: dict[str, Any] | None, enter: Enter, guarded: LiveServer
) -> None:
    """The same status, the same words, the same commands to Redis: nothing to see or to time."""
    acme, globex = enter("acme-key"), enter("globex-key")
    theirs = "of-acme"
    if acme.get(f"/sessions/{theirs}").status_code == 404:
        teach(acme, theirs)
    completion = ask(acme, theirs)["id"]

    def look(name: str, kept: str) -> tuple[Any, ...]:
        text = {key: _named(value, name, kept) for key, value in (body or {}).items()}
        before = _commands(guarded)
        response = globex.request(method, path.replace("NAME", name), json=text if body else None)
        ran = {k: n - before.get(k, 0) for k, n in _commands(guarded).items()}
        words = problem(response, 404)["detail"].replace(name, "").replace(kept, "")
        headers = dict(response.headers) | {"date": "", "x-request-id": ""}
        return words, headers, {k: n for k, n in ran.items() if n}

    pair = [(theirs, completion), ("of-none", "cmpl-" + "x" * (len(completion) - 5))]
    for _ in range(50):  # what runs in the background asks Redis too, now and then
        seen = [look(*one) for one in pair]
        if seen[0] == seen[1]:
            break
    assert seen[0] == seen[1]
    assert ok(acme.get(f"/sessions/{theirs}"))["items"] == 2


def _named(value: Any, name: str, completion: str) -> Any:
    if isinstance(value, dict):
        return {key: _named(one, name, completion) for key, one in value.items()}
    return {"NAME": name, "COMPLETION": completion}.get(value, value)


def _commands(live: LiveServer) -> dict[str, int]:
    """How often Redis ran each command."""
    connection = live.runtime.store._room.connection
    stats = live.call(connection.read("INFO", "commandstats"))
    return {name: int(about["calls"]) for name, about in stats.items()}


def test_every_one_of_several_answers_counts(enter: Enter) -> None:
    http = enter("acme-second", LIMITED)
    chat = {"model": "tiny-test", "prompt": "a", "max_tokens": 1, "session_id": "several"}
    assert (
        problem(http.post("/v1/completions", json={**chat, "n": 4}), 422)["error"]["param"] == "n"
    )
    ok(http.post("/v1/completions", json={**chat, "n": 2}))
    problem(http.post("/v1/completions", json={**chat, "n": 2}), 429)
