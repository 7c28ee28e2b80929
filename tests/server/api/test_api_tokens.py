"""Session tokens: what they open, what they never open, and when they end."""

import base64
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from api_calls import ANSWER, QUESTION, ask, ok, problem, teach
from openai import OpenAI
from server_harness import LiveServer

Enter = Callable[..., httpx.Client]


def token(http: httpx.Client, session: str, **body: Any) -> str:
    made = ok(http.post(f"/sessions/{session}/tokens", json=body), 201)
    assert made["session_id"] == session
    return str(made["token"])


@pytest.fixture
def acme(enter: Enter) -> httpx.Client:
    return enter("acme-key")


def test_a_token_needs_no_session_id(
    enter: Enter, acme: httpx.Client, session: str, guarded: LiveServer
) -> None:
    text = token(acme, session)
    page = enter(text)
    body = {"examples": [{"prompt": QUESTION, "completion": ANSWER}]}
    assert ok(page.post("/adapt", json=body))["session_id"] == session
    answer = ok(page.post("/generate", json={"prompt": QUESTION, "max_tokens": 20}))
    assert (answer["session_id"], answer["text"]) == (session, ANSWER)
    assert ask(page, session)["text"] == ANSWER  # it may be named
    rated = {"completion_id": answer["id"], "rating": 1}
    assert ok(page.post("/feedback", json=rated))["session_id"] == session
    assert ok(page.get(f"/jobs/{session}~1-1"))["status"] == "done"
    assert ok(page.get(f"/sessions/{session}/feedback"))["total"] == 2
    with OpenAI(base_url=f"{guarded.urls[0]}/v1", api_key=text, max_retries=0) as client:
        said = client.chat.completions.create(
            model=client.models.list().data[0].id,
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=20,
        )
    assert said.choices[0].message.content == ANSWER
    assert said.model_dump()["session_id"] == session
    ok(page.delete(f"/sessions/{session}/feedback/2"))
    without_token = problem(acme.post("/generate", json={"prompt": QUESTION}), 422)
    assert without_token["errors"][0]["path"] == "session_id"


def test_what_a_token_never_opens(
    enter: Enter, acme: httpx.Client, new_session: Callable[[], str]
) -> None:
    mine, other = new_session(), new_session()
    teach(acme, other)
    foreign = ask(acme, other)["id"]
    before = ok(acme.get(f"/sessions/{other}"))
    page = enter(token(acme, mine))
    for method, path in (
        ("GET", f"/sessions/{other}"),
        ("DELETE", f"/sessions/{other}"),
        ("GET", f"/sessions/{other}/feedback"),
        ("GET", f"/sessions/{other}/feedback/1"),
        ("DELETE", f"/sessions/{other}/feedback/1"),
        ("GET", f"/jobs/{other}~1-2"),
        ("POST", f"/sessions/{other}/tokens"),
        ("POST", f"/sessions/{mine}/tokens"),
        ("GET", "/admin/sessions"),
        ("GET", f"/admin/sessions/{mine}"),
        ("POST", f"/admin/sessions/{mine}/reset"),
        ("GET", "/admin/keys"),
        ("GET", "/admin/audit"),
        ("GET", "/admin/engine"),
        ("GET", "/metrics"),
    ):
        assert problem(page.request(method, path), 403)["detail"], path
    body = {"session_id": other, "prompt": QUESTION}
    problem(page.post("/generate", json=body), 403)
    example = {"examples": [{"prompt": QUESTION, "completion": "Mine."}]}
    problem(page.post("/adapt", json={"session_id": other, **example}), 403)
    problem(page.post("/sessions", json={"fork": {"session_id": other}}), 403)
    problem(page.post("/admin/keys", json={"role": "operator"}), 403)
    chat = {"model": "tiny-test", "messages": [{"role": "user", "content": QUESTION}]}
    named = page.post("/v1/chat/completions", json=chat, headers={"X-Session-ID": other})
    assert problem(named, 403)["error"]["code"] == "forbidden"
    problem(enter(token(acme, mine), **{"X-Tenant": "globex"}).get(f"/sessions/{mine}"), 403)
    # A completion of another session is as unknown as one that never was.
    answers = []
    for completion in (foreign, "cmpl-" + "x" * (len(foreign) - 5)):
        answer = problem(
            page.post("/feedback", json={"completion_id": completion, "rating": 1}), 404
        )
        answers.append({**answer, "detail": answer["detail"].replace(completion, "")})
    assert answers[0] == answers[1]
    now = ok(acme.get(f"/sessions/{other}"))
    assert {**now, "used_at": 0} == {**before, "used_at": 0}


def test_every_route_is_shut_to_a_foreign_token_unless_it_says_otherwise(
    enter: Enter, acme: httpx.Client, session: str
) -> None:
    """What is added later must not be open to pages by accident."""
    page = enter(token(acme, session))
    open_to_all = {"/healthz", "/readyz", "/problems/{name}"}
    for path, methods in ok(page.get("/openapi.json"))["paths"].items():
        if path in open_to_all or path.startswith("/v1/models"):
            continue
        for method in methods:
            named = path.replace("{session_id}", "foreign").replace("{item}", "1")
            named = named.replace("{job_id}", "foreign~1-1").replace("{key_id}", "abc")
            found = page.request(method, named, json=_body(path))
            if path == "/feedback/batch":
                assert [one["status"] for one in ok(found)["results"]] == [404]
                continue
            expected = {404} if path == "/feedback" else {403}
            assert found.status_code in expected, (method, path, found.text)


def _body(path: str) -> dict[str, Any]:
    bodies: dict[str, dict[str, Any]] = {
        "/generate": {"prompt": "a"},
        "/adapt": {"examples": [{"prompt": "a", "completion": "b"}]},
        "/feedback": {"completion_id": "x", "rating": 1},
        "/feedback/batch": {"feedback": [{"completion_id": "x", "rating": 1}]},
        "/v1/chat/completions": {
            "model": "tiny-test",
            "messages": [{"role": "user", "content": "a"}],
        },
        "/v1/completions": {"model": "tiny-test", "prompt": "a"},
        "/sessions": {},
        "/admin/keys": {"role": "operator"},
        "/admin/sessions/{session_id}/rollback": {"adapter_version": 0},
        "/admin/sessions/{session_id}/pin": {},
        "/admin/sessions/{session_id}/compare": {"prompt": "a"},
        "/sessions/{session_id}/tokens": {},
    }
    body = bodies.get(path, {})
    nameless = ("/feedback", "/feedback/batch", "/sessions")
    return body if path in nameless or not body else {"session_id": "foreign"} | body


def test_scopes(enter: Enter, acme: httpx.Client, session: str) -> None:
    page = enter(token(acme, session, scopes=["generate"]))
    completion = ask(page, session)["id"]
    for response in (
        page.post("/adapt", json={"examples": [{"prompt": "a", "completion": "b"}]}),
        page.post("/feedback", json={"completion_id": completion, "rating": 1}),
        page.get(f"/sessions/{session}"),
        page.delete(f"/sessions/{session}"),
        page.delete(f"/sessions/{session}/feedback/1"),
    ):
        assert "scopes" in problem(response, 403)["detail"]
    reader = enter(token(acme, session, scopes=["read", "read"]))
    ok(reader.get(f"/sessions/{session}"))
    problem(reader.post("/generate", json={"prompt": "a"}), 403)
    for scopes in ([], ["admin"], "read"):
        problem(acme.post(f"/sessions/{session}/tokens", json={"scopes": scopes}), 422)
    for expires in (0, 86401, "soon"):
        problem(acme.post(f"/sessions/{session}/tokens", json={"expires_in_s": expires}), 422)


def test_when_a_token_ends(
    enter: Enter, acme: httpx.Client, new_session: Callable[[], str], guarded: LiveServer
) -> None:
    session = new_session()
    operator = enter("operator-key")
    key = ok(operator.post("/admin/keys", json={"tenant": "acme", "role": "client"}), 201)
    texts = [token(acme, session), token(enter(key["key"]), session)]
    for text in texts:
        problem(enter(text).get(f"/sessions/{session}"), 404)  # it comes in; nothing is there yet
    assert operator.delete(f"/admin/keys/{key['id']}").status_code == 204
    ended = problem(enter(texts[1]).get(f"/sessions/{session}"), 401)
    assert "POST /sessions/{id}/tokens" in ended["detail"]
    ask(enter(texts[0]), session)
    ok(enter(texts[0]).get(f"/sessions/{session}"))
    assert enter(texts[0]).delete(f"/sessions/{session}").status_code == 204
    ok(acme.post("/sessions", json={"session_id": session}), 201)  # of the same name, made anew
    problem(enter(texts[0]).get(f"/sessions/{session}"), 401)
    # By its time, which is moved here instead of waited for.
    text = token(acme, session, expires_in_s=60)
    connection = guarded.runtime.store._room.connection
    tokens = guarded.runtime.store._room.keys.session("acme", session).tokens
    assert 0 < guarded.call(connection.read("TTL", tokens)) <= 60
    (name,) = guarded.call(connection.read("HKEYS", tokens))
    assert text.encode() not in name
    record = guarded.call(connection.read("HGET", tokens, name))
    guarded.call(connection.write("HSET", tokens, name, re.sub(rb'_ms":\d+', b'_ms":1', record)))
    assert "expired" in problem(enter(text).get(f"/sessions/{session}"), 401)["detail"]
    token(acme, session)
    assert guarded.call(connection.read("HLEN", tokens)) == 1  # the expired one is swept out


def test_no_more_tokens_than_a_session_may_have(
    acme: httpx.Client, guarded: LiveServer, session: str
) -> None:
    connection = guarded.runtime.store._room.connection
    tokens = guarded.runtime.store._room.keys.session("acme", session).tokens
    expiries = [1] * 5 + [9e15] * 1000  # five are expired, and make no difference
    fields = [part for n, at in enumerate(expiries) for part in (n, f'{{"expires_ms":{at:.0f}}}')]
    guarded.call(connection.write("HSET", tokens, *fields))
    assert "1000" in problem(acme.post(f"/sessions/{session}/tokens"), 409)["detail"]
    guarded.call(connection.write("HDEL", tokens, 1000))
    token(acme, session)


def test_a_token_ends_with_the_environments_key_that_made_it(
    enter: Enter, guarded: LiveServer, session: str
) -> None:
    by_operator = token(enter("operator-key", **{"X-Tenant": "acme"}), session)
    ask(enter(by_operator), session)
    without_that_operator = 2
    problem(enter(by_operator, without_that_operator).get(f"/sessions/{session}"), 401)
    ok(enter(token(enter("acme-key"), session), without_that_operator).get(f"/sessions/{session}"))


def test_tokens_that_were_never_made(enter: Enter, acme: httpx.Client, session: str) -> None:
    good = token(acme, session)
    named, secret = good.removeprefix("ilt_").split(".")

    def of(text: str) -> str:
        return "ilt_" + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=") + "." + secret

    wrong = [
        good[:-1] + ("a" if good[-1] != "a" else "b"),
        good + "x",
        "ilt_",
        f"ilt_{named}.",
        "ilt_a.b",
    ]
    wrong += [of(f"globex/{session}/environment"), of("acme/other/environment")]
    wrong += [of("acme"), of("//"), of("a/b/c/d"), of("é/x/y"), of(f"acme/{session}/0123456789ab")]
    for text in wrong:
        problem(enter(text).get(f"/sessions/{session}"), 401)
