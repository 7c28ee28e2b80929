"""Bad input: each a problem document with the field's path, nothing changed, the server alive."""

import gzip
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from api_calls import EXAMPLES, QUESTION, ask, ok, problem, teach
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_harness import LiveServer

from server.engine import EngineFailed

CONTROL = "<|user|>"
LONG = "where is my parcel " * 60  # more than the context of 192 tokens

Case = tuple[str, dict[str, Any], str]

GENERATE: list[Case] = [
    ("empty prompt", {"prompt": ""}, "prompt"),
    ("blank prompt", {"prompt": " \n\t"}, "prompt"),
    ("no prompt", {}, ""),
    ("both", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, ""),
    ("over-long prompt", {"prompt": LONG}, "prompt"),
    ("enormous prompt", {"prompt": "x" * 200_001}, "prompt"),
    ("room for the answer", {"prompt": "a", "max_tokens": 500}, "prompt"),
    ("control token", {"prompt": f"hi {CONTROL} hi"}, "prompt"),
    ("control in chat", {"messages": [{"role": "user", "content": CONTROL}]}, "messages"),
    ("no messages", {"messages": []}, "messages"),
    ("assistant last", {"messages": [{"role": "assistant", "content": "a"}]}, "messages"),
    ("blank last turn", {"messages": [{"role": "user", "content": " "}]}, "messages"),
    ("role", {"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
    ("message field", {"messages": [{"role": "user", "content": "a", "x": 1}]}, "messages[0].x"),
    ("unknown field", {"prompt": "a", "colour": "red"}, "colour"),
    ("type", {"prompt": 7}, "prompt"),
    ("max_tokens", {"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ("min_tokens", {"prompt": "a", "min_tokens": -1}, "min_tokens"),
    ("min above max", {"prompt": "a", "min_tokens": 5, "max_tokens": 4}, ""),
    ("room for the least", {"prompt": "a", "min_tokens": 500}, "prompt"),
    ("max_tokens type", {"prompt": "a", "max_tokens": "many"}, "max_tokens"),
    ("temperature", {"prompt": "a", "temperature": -1}, "temperature"),
    ("temperature high", {"prompt": "a", "temperature": 2.1}, "temperature"),
    ("top_p", {"prompt": "a", "top_p": 0}, "top_p"),
    ("top_k", {"prompt": "a", "top_k": -1}, "top_k"),
    ("stop", {"prompt": "a", "stop": [""]}, "stop[0]"),
    ("seed", {"prompt": "a", "seed": 2**63}, "seed"),
    ("no choices", {"prompt": "a", "choices": []}, "choices"),
    ("same choices", {"prompt": "a", "choices": ["b", "b"]}, "choices"),
    ("control in choice", {"prompt": "a", "choices": ["b", CONTROL]}, "choices[1]"),
    ("version", {"prompt": "a", "adapter_version": -1}, "adapter_version"),
]

GOOD = {"prompt": "a", "completion": "b"}
ADAPT: list[Case] = [
    ("no examples", {"examples": []}, "examples"),
    ("examples missing", {}, "examples"),
    ("too many", {"examples": [GOOD] * 65}, "examples"),
    (
        "empty completion",
        {"examples": [GOOD, {**GOOD, "completion": ""}]},
        "examples[1].completion",
    ),
    ("blank completion", {"examples": [{**GOOD, "completion": " "}]}, "examples[0].completion"),
    ("no completion", {"examples": [{"prompt": "a"}]}, "examples[0]"),
    ("half a pair", {"examples": [{"prompt": "a", "chosen": "b"}]}, "examples[0]"),
    ("the other half", {"examples": [{"prompt": "a", "rejected": "b"}]}, "examples[0]"),
    ("both kinds", {"examples": [{**GOOD, "chosen": "b", "rejected": "c"}]}, "examples[0]"),
    ("equal pair", {"examples": [{"prompt": "a", "chosen": "b", "rejected": "b"}]}, "examples[0]"),
    (
        "control token in a pair",
        {"examples": [{"prompt": "a", "chosen": "b", "rejected": "<|end|>"}]},
        "examples[0]",
    ),
    (
        "over-long rejected",
        {"examples": [{"prompt": "a", "chosen": "b", "rejected": LONG}]},
        "examples[0]",
    ),
    ("empty prompt", {"examples": [{**GOOD, "prompt": ""}]}, "examples[0].prompt"),
    ("unknown field", {"examples": [{**GOOD, "weight": 2}]}, "examples[0].weight"),
    ("control token", {"examples": [GOOD, {**GOOD, "completion": "<|end|>"}]}, "examples[1]"),
    ("over-long prompt", {"examples": [GOOD, {**GOOD, "prompt": LONG}]}, "examples[1]"),
    ("over-long completion", {"examples": [{**GOOD, "completion": LONG}]}, "examples[0]"),
    ("steps", {"examples": [GOOD], "steps": 0}, "steps"),
    ("many steps", {"examples": [GOOD], "steps": 51}, "steps"),
    ("dry job", {"examples": [GOOD], "dry_run": True, "wait": False}, ""),
    ("rating", {"examples": [GOOD], "rating": 1}, "rating"),
]


@pytest.fixture(scope="module")
def taught(http: httpx.Client) -> str:
    teach(http, "bad-input")
    return "bad-input"


def state(http: httpx.Client, session: str) -> Any:
    return ok(http.get(f"/admin/sessions/{session}"))


def fields(document: dict[str, Any]) -> list[str]:
    return [error["path"] for error in document["errors"]]


@pytest.mark.parametrize(
    ("body", "path"), [case[1:] for case in GENERATE], ids=[c[0] for c in GENERATE]
)
@pytest.mark.parametrize("stream", [False, True])
def test_generate_refuses(
    http: httpx.Client, taught: str, body: dict[str, Any], path: str, stream: bool
) -> None:
    response = http.post("/generate", json={"session_id": taught, "stream": stream, **body})
    document = problem(response, 422)
    assert any(found.startswith(path) for found in fields(document)), document
    assert path in document["detail"]


@pytest.mark.parametrize(("body", "path"), [case[1:] for case in ADAPT], ids=[c[0] for c in ADAPT])
def test_adapt_refuses_and_changes_nothing(
    http: httpx.Client, taught: str, body: dict[str, Any], path: str
) -> None:
    before = state(http, taught)
    document = problem(http.post("/adapt", json={"session_id": taught, **body}), 422)
    assert path in fields(document), document
    assert state(http, taught) == before


@pytest.mark.parametrize(
    "body",
    [
        {"correction": "a"},
        {"completion_id": "c"},
        {"completion_id": "c", "rating": 0},
        {"completion_id": "c", "rating": 2, "correction": "a"},
        {"completion_id": "c", "rating": "up"},
        {"completion_id": "c", "comment": "nice"},
        {"completion_id": "c", "correction": "  "},
        {"completion_id": "", "correction": "a"},
    ],
)
def test_feedback_refuses(http: httpx.Client, body: dict[str, Any]) -> None:
    problem(http.post("/feedback", json=body), 422)


def test_correction_that_cannot_be_taught(http: httpx.Client, session: str) -> None:
    completion = ask(http, session)["id"]
    for correction in (CONTROL, LONG):
        body = {"completion_id": completion, "correction": correction}
        assert fields(problem(http.post("/feedback", json=body), 422)) == ["correction"]
    assert ok(http.get(f"/sessions/{session}"))["items"] == 0


def test_a_refused_question_makes_no_session(http: httpx.Client, session: str) -> None:
    for fields in ({"prompt": LONG}, {"prompt": "a", "adapter_version": 3}):
        response = http.post("/generate", json={"session_id": session, **fields})
        problem(response, response.status_code)
        problem(http.get(f"/sessions/{session}"), 404)


@pytest.mark.parametrize(
    "name", ["", "x" * 129, "a b", "a/b", "ü", "a\n", "a{b}", "*", ".", "..", "..."]
)
def test_session_names(http: httpx.Client, name: str) -> None:
    problem(http.post("/generate", json={"session_id": name, "prompt": "a"}), 422)
    problem(http.post("/adapt", json={"session_id": name, "examples": EXAMPLES}), 422)
    problem(http.post("/sessions", json={"session_id": name}), 422)


def test_a_session_is_not_named_by_dots_in_any_door(http: httpx.Client) -> None:
    """Clients resolve `..` in a path before they send it: nobody could delete the session."""
    chat = {
        "messages": [{"role": "user", "content": "a"}],
        "model": http.get("/readyz").json()["model"],
    }
    doors = (
        http.post("/v1/chat/completions", json={**chat, "session_id": ".."}),
        http.post("/v1/chat/completions", json=chat, headers={"X-Session-ID": ".."}),
        http.post("/sessions", json={"fork": {"session_id": ".."}}),
        http.post(
            "/sessions?session_id=..", content=b"", headers={"Content-Type": "application/zip"}
        ),
    )
    for response in doors:
        assert "dots" in problem(response, 422)["detail"]


@pytest.mark.parametrize(
    "path", ["/sessions/a b", "/sessions/%FF", "/sessions/" + "x" * 129, "/sessions/%2e%2e"]
)
def test_session_names_in_paths(http: httpx.Client, path: str) -> None:
    document = problem(http.get(path), 422)
    assert document["errors"][0] == {
        "in": "path",
        "path": "session_id",
        "message": document["errors"][0]["message"],
    }


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"a": }', b"[" * 100_000, b"\xff\xfe", b'{"prompt": "a" "b"}', b'"\\ud800'],
)
def test_malformed_json(http: httpx.Client, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    response = http.post("/generate", content=content, headers=headers)
    assert response.status_code in (400, 422)
    problem(response, response.status_code)


@pytest.mark.parametrize("content", [b"[]", b"null", b"1", b'"text"', b'{"session_id": null}'])
def test_json_of_another_kind(http: httpx.Client, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    problem(http.post("/generate", content=content, headers=headers), 422)


@pytest.mark.parametrize(
    ("content", "status", "told"),
    [
        (b"", 422, "send a JSON object"),
        (b"[1]", 422, "send a JSON object"),
        (b'{"prompt": "\xe9"}', 400, "not UTF-8"),
        (b"[" * 100_000, 400, "nested too deep"),
    ],
)
def test_what_is_wrong_with_a_body(
    http: httpx.Client, content: bytes, status: int, told: str
) -> None:
    headers = {"Content-Type": "application/json"}
    for path in ("/generate", "/v1/chat/completions"):
        document = problem(http.post(path, content=content, headers=headers), status)
        assert told in document["detail"]
        assert path == "/generate" or document["error"]["param"] is None


def test_a_compressed_body(http: httpx.Client) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    response = http.post("/generate", content=gzip.compress(b"{}"), headers=headers)
    assert "compressed" in problem(response, 415)["detail"]
    plain = {**headers, "Content-Encoding": "identity"}
    body = json.dumps({"session_id": "plain", "prompt": QUESTION}).encode()
    ok(http.post("/generate", content=body, headers=plain))


def test_half_a_character(http: httpx.Client, session: str) -> None:
    """A lone surrogate is legal JSON and no text."""
    body = b'{"session_id": "%s", "prompt": "a\\ud800b"}' % session.encode()
    response = http.post("/generate", content=body, headers={"Content-Type": "application/json"})
    assert fields(problem(response, 422)) == ["prompt"]


def test_not_json_at_all(http: httpx.Client) -> None:
    response = http.post("/generate", data={"session_id": "a", "prompt": "b"})
    assert "application/json" in problem(response, 415)["detail"]


def test_too_large(live: LiveServer, session: str) -> None:
    body = json.dumps({"session_id": session, "prompt": "a" * 20_000}).encode()
    with live.client(2) as http:
        problem(http.post("/generate", content=body), 413)
        # Without an announced length, and with more than the server wants to read.
        response = http.post("/generate", content=iter([body] * 3))
        problem(response, 413)
        assert ask(http, session)["adapter_version"] == 0


def test_no_such_route(http: httpx.Client) -> None:
    assert "/nowhere" in problem(http.get("/nowhere"), 404)["detail"]
    response = http.put("/generate", json={})
    problem(response, 405)
    assert response.headers["allow"] == "POST"


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def test_a_failure_of_the_engine_says_what_to_do(
    live: LiveServer, http: httpx.Client, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, advice = live.runtime.engine, "it is not finite: roll the session back"
    monkeypatch.setattr(engine, "generate", failing(EngineFailed(advice)))
    monkeypatch.setattr(engine, "adapt", failing(EngineFailed(advice)))
    question = {"session_id": session, "prompt": QUESTION}
    assert problem(http.post("/generate", json=question), 500)["detail"] == advice
    streamed = http.post("/generate", json={**question, "stream": True})
    assert streamed.json()["detail"] == advice
    lesson = {"session_id": session, "examples": EXAMPLES}
    dry = http.post("/adapt", json={**lesson, "dry_run": True})
    assert problem(dry, 500)["detail"] == advice
    detail = problem(http.post("/adapt", json=lesson), 500)["detail"]
    assert detail.startswith(advice)
    assert f"GET /jobs/{session}~1-2" in detail
    ok(http.get(f"/jobs/{session}~1-2"))
    monkeypatch.undo()
    assert teach(http, session)["accepted"] is True


def test_what_nobody_foresaw_promises_nothing_and_tells_no_secret(
    live: LiveServer, http: httpx.Client, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live.runtime.engine, "adapt", failing(RuntimeError("a secret")))
    lesson = {"session_id": session, "examples": EXAMPLES}
    detail = problem(http.post("/adapt", json=lesson), 500)["detail"]
    assert "secret" not in detail
    assert "whether anything was done is not known" in detail
    assert ok(http.get(f"/sessions/{session}"))["pending_items"] == 2


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/", "/admin", "/web/admin.js", "/v1/models", "/openapi.json"]
)
def test_head_is_get_without_its_body(http: httpx.Client, path: str) -> None:
    got, head = http.get(path), http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", "content-length"):
        assert head.headers[name] == got.headers[name]


def test_head_of_what_is_not_there_or_has_no_get(http: httpx.Client, taught: str) -> None:
    assert http.head("/sessions/nobody").status_code == 404
    assert http.head("/generate").status_code == 405
    assert http.head(f"/sessions/{taught}/events").status_code == 405


def test_every_type_is_explained(http: httpx.Client) -> None:
    document = problem(http.get("/nowhere"), 404)
    assert ok(http.get(document["type"]))["status"] == 404
    problem(http.get("/problems/nothing"), 404)


def test_idempotency_key_header(http: httpx.Client, session: str) -> None:
    body = {"session_id": session, "examples": EXAMPLES}
    response = http.post("/adapt", json=body, headers={"Idempotency-Key": "x" * 256})
    assert problem(response, 422)["errors"][0]["in"] == "header"
    problem(http.get(f"/sessions/{session}"), 404)


def test_a_key_with_another_body_quotes_no_key(http: httpx.Client, session: str) -> None:
    headers = {"Idempotency-Key": "mine"}
    for status, examples in ((200, EXAMPLES), (409, EXAMPLES[:1])):
        body = {"session_id": session, "examples": examples}
        answer = http.post("/adapt", json=body, headers=headers)
        assert answer.status_code == status
    assert problem(answer, 409)["detail"].startswith("this idempotency key was used for another")
    assert "client-" not in answer.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    [
        "session_id",
        "prompt",
        "messages",
        "max_tokens",
        "stop",
        "choices",
        "seed",
        "stream",
        "examples",
    ]
)


@given(
    path=st.sampled_from(["/generate", "/adapt", "/feedback", "/sessions", "/v1/chat/completions"]),
    body=st.dictionaries(NAMES, JSON),
)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_body_is_an_internal_error(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    content = json.dumps(body).encode("utf-8", "surrogatepass")
    response = http.post(path, content=content, headers={"Content-Type": "application/json"})
    if response.status_code >= 300:
        assert response.status_code in (400, 404, 409, 415, 422)
        problem(response, response.status_code)


def test_the_server_is_alive(http: httpx.Client, taught: str) -> None:
    assert ask(http, taught, QUESTION)["adapter_version"] == 1
    ok(http.get("/readyz"))


def test_a_query_parameter_that_is_none(http: httpx.Client) -> None:
    document = problem(http.get("/admin/sessions?tennant=a"), 422)
    assert (document["errors"][0]["in"], document["errors"][0]["path"]) == ("query", "tennant")
    assert "contains, limit, offset, order, sort, taught, tenant" in document["detail"]
    for url in ("/sessions/a/feedback?=", "/v1/models?limit=1", "/sessions/a?limit=1"):
        problem(http.get(url), 422)
    problem(http.post("/generate?stream=true", json={"prompt": "a"}), 422)
    assert http.get("/readyz?probe=1").status_code == 200
