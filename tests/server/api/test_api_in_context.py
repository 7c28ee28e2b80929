"""`in_context`: the session's feedback as earlier turns of the prompt, learned or not."""

from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from api_calls import ANSWER, QUESTION, ask, events, ok, problem, teach
from server_harness import LiveServer

OTHER = ("Do you sell cats?", "Look at the barn.")


@pytest.fixture
def pending(http: httpx.Client, session: str) -> str:
    """A session with two items that wait for its next feedback."""
    for question, answer in ((QUESTION, ANSWER), OTHER):
        asked = ask(http, session, question)
        body = {"completion_id": asked["id"], "correction": answer, "adapt": False}
        ok(http.post("/feedback", json=body), 202)
    assert ok(http.get(f"/sessions/{session}"))["pending_items"] == 2
    return session


def shown(http: httpx.Client, session: str, k: int = 8, **fields: Any) -> list[int]:
    found = ask(http, session, in_context=k, **fields)["in_context"]
    assert isinstance(found, list)
    return found


def chat(*turns: str) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant") * len(turns), turns, strict=False)
    ]


def test_pending_items_are_shown_as_the_same_turns_that_a_client_could_send(
    http: httpx.Client, pending: str
) -> None:
    asked = ask(http, pending, in_context=8)
    assert asked["in_context"] == [2, 1], "the most relevant one is next to the question"
    assert (asked["adapter_version"], asked["adapter_used"]) == (0, False)
    turns = chat(*OTHER, QUESTION, ANSWER, QUESTION)
    body = {"session_id": pending, "messages": turns, "max_tokens": 20}
    sent = ok(http.post("/generate", json=body))
    assert asked["text"] == sent["text"]
    assert asked["usage"]["prompt_tokens"] == sent["usage"]["prompt_tokens"]
    assert asked["usage"]["total_tokens"] == sent["usage"]["total_tokens"]
    plain = ask(http, pending)
    assert plain["usage"]["prompt_tokens"] < asked["usage"]["prompt_tokens"]
    assert "in_context" not in plain


def test_k_is_the_most_and_0_is_none(http: httpx.Client, pending: str) -> None:
    assert shown(http, pending, 1) == [1]
    assert shown(http, pending, 1, prompt=OTHER[0]) == [2]
    assert "in_context" not in ask(http, pending, in_context=0)


def test_the_prompts_own_turns_stay_where_they_are(http: httpx.Client, pending: str) -> None:
    system = {"role": "system", "content": "Be brief."}
    own = [system, *chat("hello", "hello", QUESTION)]
    body = {"session_id": pending, "messages": own, "max_tokens": 20, "in_context": 1}
    asked = ok(http.post("/generate", json=body))
    body = {**body, "messages": [system, *chat(QUESTION, ANSWER), *own[1:]], "in_context": 0}
    assert asked["text"] == ok(http.post("/generate", json=body))["text"]


def test_what_does_not_count_any_more_is_never_shown(http: httpx.Client, session: str) -> None:
    teach(http, session, [{"prompt": QUESTION, "completion": ANSWER}])
    teach(http, session, [{"prompt": QUESTION, "completion": "Ask the crow."}])
    teach(http, session, [{"prompt": OTHER[0], "completion": OTHER[1]}])
    assert shown(http, session) == [3, 2], "the first was superseded"
    ok(http.post(f"/admin/sessions/{session}/rollback", json={"adapter_version": 2}))
    assert shown(http, session) == [2], "the third was rolled back"
    assert http.delete(f"/sessions/{session}/feedback/2").status_code == 200
    assert shown(http, session) == [1], "what the forgotten one superseded is back"
    assert http.delete(f"/sessions/{session}/feedback/1").status_code == 200
    assert shown(http, session) == []
    ok(http.post(f"/admin/sessions/{session}/reset"))
    assert shown(http, session) == []


def test_a_disliked_answer_is_not_shown_and_a_liked_one_is(
    http: httpx.Client, new_session: Callable[[], str]
) -> None:
    for rating, wanted in ((1, [1]), (-1, [])):
        session = new_session()
        asked = ask(http, session, max_tokens=60)
        body = {"completion_id": asked["id"], "rating": rating, "adapt": False}
        ok(http.post("/feedback", json=body), 202)
        if asked["finish_reason"] == "length":
            wanted = []  # half of an answer is no example
        assert shown(http, session) == wanted


def test_a_pinned_session_shows_what_it_learned(http: httpx.Client, session: str) -> None:
    teach(http, session, [{"prompt": QUESTION, "completion": ANSWER}])
    ok(http.post(f"/admin/sessions/{session}/pin", json={}))
    asked = ask(http, session, OTHER[0])
    body = {"completion_id": asked["id"], "correction": OTHER[1], "adapt": False}
    ok(http.post("/feedback", json=body), 202)
    assert shown(http, session) == [1]
    ok(http.post(f"/admin/sessions/{session}/pin", json={"pinned": False}))
    assert shown(http, session) == [2, 1]


def test_the_least_relevant_items_are_left_out_where_the_context_ends(
    http: httpx.Client, pending: str
) -> None:
    """The model's context is 192 tokens."""
    both = ask(http, pending, in_context=8)["usage"]["prompt_tokens"]
    one = ask(http, pending, in_context=1)["usage"]["prompt_tokens"]
    bare = ask(http, pending)["usage"]["prompt_tokens"]
    assert bare < one < both
    for room, wanted in (
        (192 - both, [2, 1]),
        (193 - both, [1]),
        (193 - one, []),
        (192 - bare, []),
    ):
        assert shown(http, pending, max_tokens=room) == wanted
    body = {"session_id": pending, "prompt": "x " * 400, "in_context": 2}
    assert problem(http.post("/generate", json=body), 422)["errors"][0]["path"] == "prompt"


def test_shown_prompts_are_cached_apart_and_change_no_other(
    http: httpx.Client, pending: str
) -> None:
    plain = ask(http, pending)
    first, second = (ask(http, pending, in_context=2) for _ in range(2))
    assert first["text"] == second["text"]
    assert second["usage"]["cached_tokens"] > plain["usage"]["prompt_tokens"]
    assert ask(http, pending)["text"] == plain["text"]


def test_feedback_on_such_an_answer_is_about_what_was_asked(
    http: httpx.Client, pending: str
) -> None:
    asked = ask(http, pending, in_context=2)
    body = {"completion_id": asked["id"], "correction": "Ask the crow."}
    assert ok(http.post("/feedback", json=body))["accepted"]
    items = ok(http.get(f"/sessions/{pending}/feedback"))["items"]
    assert [item["status"] for item in items] == ["superseded", "applied", "applied"]
    assert shown(http, pending) == [2, 3]


def test_streams_choices_and_the_adapter_have_it_too(http: httpx.Client, session: str) -> None:
    teach(http, session)
    asked = ask(http, session, in_context=1)
    assert asked["adapter_version"] == 1
    assert asked["adapter_used"]
    body = {"session_id": session, "prompt": QUESTION, "max_tokens": 20, "stream": True}
    streamed = events(http.post("/generate", json={**body, "in_context": 1}).text)[-1][1]
    assert (streamed["text"], streamed["in_context"]) == (asked["text"], asked["in_context"])
    picked = ask(http, session, in_context=2, choices=["yes", "no"])
    assert len(picked["in_context"]) == 2
    assert picked["choice_logprobs"] != ask(http, session, choices=["yes", "no"])["choice_logprobs"]


@pytest.mark.parametrize("k", [-1, 33, "3", 1.5, True, [1]])
@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
def test_a_bad_k_is_refused_by_its_name(
    http: httpx.Client, session: str, path: str, k: Any
) -> None:
    body = {"session_id": session, "in_context": k}
    own = {"prompt": QUESTION} if path == "/generate" else {"messages": chat(QUESTION)}
    extra = {} if path == "/generate" else {"model": "tiny-test"}
    found = problem(http.post(path, json=body | own | extra), 422)
    assert found["errors"][0]["path"] == "in_context"


def test_openais_clients_have_it(live: LiveServer, http: httpx.Client, pending: str) -> None:
    told: Any = {"model": "tiny-test", "messages": chat(QUESTION), "max_tokens": 20}
    with openai.OpenAI(base_url=live.urls[0] + "/v1", api_key="unused", max_retries=0) as client:
        extra = {"session_id": pending, "in_context": 2}
        found = client.chat.completions.create(**told, n=2, extra_body=extra)
    assert found.model_dump()["in_context"] == [2, 1]
    assert found.choices[0].message.content == ask(http, pending, in_context=2)["text"]
    assert found.usage is not None
    asked = ask(http, pending, in_context=2)
    assert found.usage.prompt_tokens == asked["usage"]["prompt_tokens"]
    nobody = http.post("/v1/chat/completions", json=told | {"in_context": 2})
    assert "name a session" in problem(nobody, 422)["detail"]
    raw = {"model": "tiny-test", "prompt": "x", "session_id": pending, "in_context": 2}
    assert "in_context" in problem(http.post("/v1/completions", json=raw), 422)["detail"]
