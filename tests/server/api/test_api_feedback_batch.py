"""`POST /feedback/batch`: one answer per element, one derivation per session."""

from collections.abc import Callable
from typing import Any

import httpx
from api_calls import ANSWER, QUESTION, ask, ok, problem


def batch(http: httpx.Client, *feedback: dict[str, Any], key: str | None = None) -> list[Any]:
    headers = {} if key is None else {"Idempotency-Key": key}
    answer = ok(http.post("/feedback/batch", json={"feedback": feedback}, headers=headers))
    assert len(answer["results"]) == len(feedback)
    return list(answer["results"])


def test_a_session_learns_once_from_many(
    http: httpx.Client, new_session: Callable[[], str]
) -> None:
    session, other = new_session(), new_session()
    asked = ["Where is my order?", "How can I track my parcel?"]
    mine = [ask(http, session, prompt, max_tokens=4)["id"] for prompt in asked]
    theirs = ask(http, other, max_tokens=4)["id"]
    sent: list[dict[str, Any]] = [
        {"completion_id": mine[0], "correction": ANSWER},
        {"completion_id": "cmpl-nobody", "rating": 1},
        {"completion_id": mine[1], "correction": ANSWER},
        {"completion_id": theirs, "correction": "<|end|>"},
        {"completion_id": theirs, "rating": -1, "adapt": False},
    ]
    results = batch(http, *sent)
    assert [element["status"] for element in results] == [200, 404, 200, 422, 202]
    first, unknown, second, wrong, waiting = results
    assert first["result"]["accepted"]
    assert first["result"]["adapter_version"] == second["result"]["adapter_version"] == 1
    assert first["result"]["examples_used"] == 2
    assert [first["result"]["items"], second["result"]["items"]] == [[1], [2]]
    assert "cmpl-nobody" in unknown["problem"]["detail"]
    assert wrong["problem"]["errors"][0]["path"] == "correction"
    assert waiting["job"]["status"] == "pending"
    assert ok(http.get(f"/jobs/{waiting['job']['id']}"))["session_id"] == other
    assert ask(http, session, QUESTION)["text"] == ANSWER
    # Sent again, nothing is taught twice.
    again = batch(http, *sent)
    assert again[0]["result"]["items"] == [1]
    assert again[2]["result"]["adapter_version"] == 1
    assert ok(http.get(f"/sessions/{session}"))["items"] == 2
    assert ok(http.get(f"/sessions/{other}"))["items"] == 1


def test_keys_belong_to_elements(http: httpx.Client, session: str) -> None:
    named = ask(http, session, max_tokens=4)["id"]
    one = {"completion_id": named, "rating": 1, "adapt": False}
    two = {"completion_id": named, "rating": -1, "adapt": False}
    assert [element["status"] for element in batch(http, one, two, key="k")] == [202, 202]
    assert [element["status"] for element in batch(http, one, two, key="k")] == [202, 202]
    swapped = batch(http, two, one, key="k")
    assert [element["status"] for element in swapped] == [409, 409]
    assert ok(http.get(f"/sessions/{session}"))["items"] == 2


def test_a_malformed_batch_keeps_nothing(http: httpx.Client, session: str) -> None:
    named = ask(http, session, max_tokens=4)["id"]
    good = {"completion_id": named, "rating": 1}
    body = {"feedback": [good, {"completion_id": named}]}
    document = problem(http.post("/feedback/batch", json=body), 422)
    assert [error["path"] for error in document["errors"]] == ["feedback[1]"]
    problem(http.post("/feedback/batch", json={"feedback": []}), 422)
    problem(http.post("/feedback/batch", json={"feedback": [good] * 65}), 422)
    assert ok(http.get(f"/sessions/{session}"))["items"] == 0
