"""POST /sessions with `fork`: the same taught state, and two ways from there."""

from collections.abc import Callable

import httpx
from api_calls import ANSWER, QUESTION, ask, ok, problem, teach


def test_a_fork_begins_with_what_the_other_was_taught(
    http: httpx.Client, new_session: Callable[[], str]
) -> None:
    source, target = new_session(), new_session()
    teach(http, source, steps=15)
    old = ask(http, source)
    ok(http.post("/feedback", json={"completion_id": old["id"], "rating": 1}))
    made = ok(
        http.post("/sessions", json={"session_id": target, "fork": {"session_id": source}}), 201
    )
    assert (made["adapter_version"], made["items"], made["applied_items"]) == (1, 3, 3)
    versions = [
        ok(http.get(f"/admin/sessions/{name}"))["versions"][-1] for name in (source, target)
    ]
    for name in ("items", "steps", "loss_before", "loss_after", "update_norm"):
        assert versions[0][name] == versions[1][name], name
    log = ok(http.get(f"/admin/sessions/{target}"))["log"]
    assert log[-1]["fields"] == {"from": f"version 2 of session {source}"}
    # From here on they go their own ways.
    teach(http, target, [{"prompt": QUESTION, "completion": "See the barn."}])
    assert ask(http, source)["text"] == ANSWER
    assert http.delete(f"/sessions/{source}").status_code == 204
    assert ask(http, target)["text"] == "See the barn."


def test_a_fork_of_an_older_version(http: httpx.Client, new_session: Callable[[], str]) -> None:
    source, target, untaught = new_session(), new_session(), new_session()
    teach(http, source)
    teach(http, source, [{"prompt": QUESTION, "completion": "See the barn."}])
    fork = {"session_id": source, "adapter_version": 1}
    ok(http.post("/sessions", json={"session_id": target, "fork": fork}), 201)
    assert ask(http, target)["text"] == ANSWER
    fork = {"session_id": source, "adapter_version": 0}
    made = ok(http.post("/sessions", json={"session_id": untaught, "fork": fork}), 201)
    assert (made["adapter_version"], made["items"]) == (0, 0)


def test_what_cannot_be_forked(http: httpx.Client, new_session: Callable[[], str]) -> None:
    source, target = new_session(), new_session()
    fork = {"session_id": source}
    problem(http.post("/sessions", json={"session_id": target, "fork": fork}), 404)
    teach(http, source)
    body = {"session_id": target, "fork": {**fork, "adapter_version": 7}}
    problem(http.post("/sessions", json=body), 404)
    problem(http.get(f"/sessions/{target}"), 404)
    body = {"session_id": source, "fork": fork}
    problem(http.post("/sessions", json=body), 409)
    assert ok(http.get(f"/sessions/{source}"))["items"] == 2
