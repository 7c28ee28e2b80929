"""/sessions and their feedback: create, read, forget, delete."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from api_calls import ANSWER, EXAMPLES, QUESTION, ask, ok, problem, teach
from server_harness import LiveServer


def test_create_read_delete(http: httpx.Client, session: str) -> None:
    response = http.post("/sessions", json={"session_id": session})
    created = ok(response, 201)
    assert response.headers["location"] == f"/sessions/{session}"
    assert created["adapter_version"] == created["items"] == created["pending_items"] == 0
    assert ok(http.get(f"/sessions/{session}")) == created
    problem(http.post("/sessions", json={"session_id": session}), 409)
    assert http.delete(f"/sessions/{session}").status_code == 204
    problem(http.get(f"/sessions/{session}"), 404)
    problem(http.delete(f"/sessions/{session}"), 404)
    drawn = ok(http.post("/sessions", json={}), 201)["session_id"]
    assert ok(http.get(f"/sessions/{drawn}"))["session_id"] == drawn


def test_deleted_session_begins_anew(http: httpx.Client, session: str) -> None:
    untaught = ask(http, session)["text"]
    teach(http, session)
    assert ask(http, session)["text"] == ANSWER
    http.delete(f"/sessions/{session}")
    again = ask(http, session)
    assert (again["text"], again["adapter_version"]) == (untaught, 0)
    # Version 1 again, of another adapter: nothing of the first life may answer.
    teach(http, session, [{"prompt": QUESTION, "completion": "Look at the barn."}])
    taught = ask(http, session)
    assert (taught["text"], taught["adapter_version"]) == ("Look at the barn.", 1)


@pytest.mark.parametrize("again", [False, True])
def test_an_answer_under_way_when_its_session_is_deleted_leaves_nothing(
    live: LiveServer, http: httpx.Client, session: str, again: bool
) -> None:
    first = ask(http, session)["id"]
    with ThreadPoolExecutor(1) as pool:
        with live.held_after(0) as still:
            late = pool.submit(ask, http, session)
            still.wait()
            assert http.delete(f"/sessions/{session}").status_code == 204
            if again:
                ok(http.post("/sessions", json={"session_id": session}), 201)
        answer = late.result()
    assert answer["text"] is not None
    for completion in (first, answer["id"]):
        body = {"completion_id": completion, "correction": ANSWER}
        problem(http.post("/feedback", json=body), 404)
    assert http.get(f"/sessions/{session}").status_code == (200 if again else 404)


def test_feedback_by_page(http: httpx.Client, session: str) -> None:
    problem(http.get(f"/sessions/{session}/feedback"), 404)
    examples = [{"prompt": f"Question {n}?", "completion": "Yes."} for n in range(5)]
    teach(http, session, examples, steps=2)
    whole = ok(http.get(f"/sessions/{session}/feedback"))
    assert whole["total"] == 5
    assert [item["id"] for item in whole["items"]] == [1, 2, 3, 4, 5]
    page = ok(http.get(f"/sessions/{session}/feedback", params={"offset": 3, "limit": 1}))
    assert page["items"] == whole["items"][3:4]
    assert page["items"][0]["messages"] == [{"role": "user", "content": "Question 3?"}]
    assert page["items"][0]["adapter_version"] == 1
    beyond = ok(http.get(f"/sessions/{session}/feedback", params={"offset": 9}))
    assert beyond["items"] == []
    problem(http.get(f"/sessions/{session}/feedback/6"), 404)


def test_forgetting_is_exact(http: httpx.Client, new_session: Callable[[], str]) -> None:
    """A session that forgot answers as one that never heard, token by token."""
    forgetful, innocent = new_session(), new_session()
    secret = {"prompt": "Who is Maud?", "completion": "My aunt."}
    teach(http, innocent, EXAMPLES)
    teach(http, forgetful, [EXAMPLES[0], secret, EXAMPLES[1]])
    result = ok(http.delete(f"/sessions/{forgetful}/feedback/2"))
    assert result["item"] == 2
    assert result["adapter_version"] == 2
    assert result["deleted_versions"] == [1]
    assert "reason" not in result
    items = ok(http.get(f"/sessions/{forgetful}/feedback"))["items"]
    assert [item["status"] for item in items] == ["applied", "forgotten", "applied"]
    assert "completion" not in items[1]
    assert "Maud" not in http.get(f"/admin/sessions/{forgetful}").text
    problem(
        http.post("/generate", json={"session_id": forgetful, "prompt": "x", "adapter_version": 1}),
        404,
    )
    for prompt in (QUESTION, "Who is Maud?", "hello"):
        one, other = (ask(http, name, prompt, logprobs=True) for name in (forgetful, innocent))
        assert one["logprobs"] == other["logprobs"]


def test_forgetting_everything_leaves_the_base(http: httpx.Client, session: str) -> None:
    untaught = ask(http, session)["text"]
    teach(http, session)
    http.delete(f"/sessions/{session}/feedback/1")
    last = ok(http.delete(f"/sessions/{session}/feedback/2"))
    assert last["adapter_version"] == 0
    assert ask(http, session)["text"] == untaught
    assert ok(http.delete(f"/sessions/{session}/feedback/2"))["adapter_version"] == 0
    problem(http.delete(f"/sessions/{session}/feedback/3"), 404)


def test_forgetting_restores_what_was_superseded(http: httpx.Client, session: str) -> None:
    teach(http, session)
    teach(http, session, [{"prompt": QUESTION, "completion": "Look at the barn."}])
    result = ok(http.delete(f"/sessions/{session}/feedback/3"))
    assert result["restored_items"] == [1]
    assert ask(http, session)["text"] == ANSWER
