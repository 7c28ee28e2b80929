"""POST /adapt, POST /feedback, GET /jobs: teaching over HTTP, and doing it once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from api_calls import ANSWER, EXAMPLES, QUESTION, ask, ok, problem, teach
from redis_process import until
from server_harness import LiveServer


def test_answer_says_what_happened(http: httpx.Client, session: str) -> None:
    report = teach(http, session)
    assert report["session_id"] == session
    assert report["accepted"] is True
    assert "reason" not in report
    assert report["adapter_version"] == 1
    assert report["items"] == [1, 2]
    assert report["examples_used"] == 2
    assert report["steps"] == 12
    assert report["loss_after"] < report["loss_before"]
    assert report["update_norm"] > 0
    assert report["duration_ms"] > 0


def test_later_feedback_is_derived_together_with_earlier(http: httpx.Client, session: str) -> None:
    teach(http, session)
    other = {"prompt": "Do you take cash?", "completion": "Eggs."}
    report = teach(http, session, [other], steps=15)
    assert (report["items"], report["examples_used"], report["steps"]) == ([3], 3, 15)
    assert ask(http, session)["text"] == ANSWER
    assert ask(http, session, "Do you take cash?")["text"] == "Eggs."


def test_same_prompt_again_supersedes(http: httpx.Client, session: str) -> None:
    teach(http, session)
    report = teach(http, session, [{"prompt": QUESTION, "completion": "Look at the barn."}])
    assert report["examples_used"] == 2
    items = ok(http.get(f"/sessions/{session}/feedback"))["items"]
    assert [item["status"] for item in items] == ["superseded", "applied", "applied"]
    assert items[0]["superseded_by"] == 3


def test_dry_run_keeps_nothing(http: httpx.Client, session: str) -> None:
    report = teach(http, session, dry_run=True)
    assert report["accepted"] is True
    assert (report["items"], report["examples_used"]) == ([], 2)
    assert report["adapter_version"] == 0
    assert report["loss_after"] < report["loss_before"]
    problem(http.get(f"/sessions/{session}"), 404)
    teach(http, session)
    before = ok(http.get(f"/sessions/{session}"))
    again = teach(http, session, [{"prompt": "Hello", "completion": "Hi."}], dry_run=True)
    assert (again["adapter_version"], again["examples_used"]) == (1, 3)
    assert ok(http.get(f"/sessions/{session}")) == before


def test_dry_run_says_what_the_call_would_do(http: httpx.Client, session: str) -> None:
    """Also where an answer is replaced, twice in one call, or nothing is learned now."""
    teach(http, session)
    prompt = EXAMPLES[0]["prompt"]
    other = [{"prompt": prompt, "completion": text} for text in ("At nine.", "At nine.", "At ten.")]
    figures = ("accepted", "steps", "examples_used", "loss_before", "loss_after", "update_norm")
    dry, real = (teach(http, session, other, dry_run=dry) for dry in (True, False))
    assert [dry[name] for name in figures] == pytest.approx([real[name] for name in figures])
    assert real["examples_used"] == 2
    ok(http.post(f"/admin/sessions/{session}/pin", json={"pinned": True}))
    for dry_run in (True, False):
        told = teach(http, session, other, dry_run=dry_run)
        assert (told["accepted"], "pinned" in told["reason"]) == (False, True)


def test_idempotency_key_teaches_once(http: httpx.Client, session: str) -> None:
    body = {"session_id": session, "examples": EXAMPLES}
    key = {"Idempotency-Key": "one try"}
    first = ok(http.post("/adapt", json=body, headers=key))
    assert ok(http.post("/adapt", json=body, headers=key)) == first
    assert ok(http.get(f"/sessions/{session}"))["items"] == 2
    teach(http, session, [{"prompt": "Hello", "completion": "Hi."}])
    assert ok(http.post("/adapt", json=body, headers=key)) == first
    changed = {**body, "examples": EXAMPLES[:1]}
    document = problem(http.post("/adapt", json=changed, headers=key), 409)
    assert "key" in document["detail"]
    assert ok(http.post("/adapt", json=body, headers={"Idempotency-Key": "another"}))["items"] == [
        4,
        5,
    ]


def test_the_same_request_many_times_at_once(http: httpx.Client, session: str) -> None:
    body = {"session_id": session, "examples": EXAMPLES}

    def send(_: int) -> dict[str, Any]:
        return ok(http.post("/adapt", json=body, headers={"Idempotency-Key": "k"}))

    with ThreadPoolExecutor(6) as pool:
        reports = list(pool.map(send, range(6)))
    assert all(report == reports[0] for report in reports)
    assert ok(http.get(f"/sessions/{session}"))["items"] == 2


def test_feedback_at_the_same_time_all_ends_up_in_the_result(
    http: httpx.Client, session: str
) -> None:
    texts = ["Where do I park?", "Do you sharpen knives?", "Are dogs allowed?"]
    with ThreadPoolExecutor(3) as pool:
        reports = list(
            pool.map(
                lambda text: teach(http, session, [{"prompt": text, "completion": "Yes."}]), texts
            )
        )
    assert all(report["accepted"] for report in reports)
    state = ok(http.get(f"/sessions/{session}"))
    assert (state["items"], state["applied_items"], state["pending_items"]) == (3, 3, 0)
    versions = ok(http.get(f"/admin/sessions/{session}"))["versions"]
    assert versions[-1]["items"] == [1, 2, 3]


def wait_for(http: httpx.Client, job_id: str) -> dict[str, Any]:
    until(lambda: ok(http.get(f"/jobs/{job_id}"))["status"] == "done")
    return ok(http.get(f"/jobs/{job_id}"))


def test_jobs(http: httpx.Client, session: str) -> None:
    body = {"session_id": session, "examples": EXAMPLES, "wait": False}
    key = {"Idempotency-Key": "job"}
    response = http.post("/adapt", json=body, headers=key)
    job = ok(response, 202)
    assert job["status"] == "pending"
    assert response.headers["location"] == f"/jobs/{job['id']}"
    done = wait_for(http, job["id"])
    assert done["result"]["accepted"] is True
    assert (done["result"]["adapter_version"], done["result"]["items"]) == (1, [1, 2])
    assert done["result"]["loss_after"] < done["result"]["loss_before"]
    assert ask(http, session)["text"] == ANSWER
    repeated = ok(http.post("/adapt", json=body, headers=key), 202)
    assert (repeated["id"], repeated["status"]) == (job["id"], "done")
    for unknown in ("nonsense", f"{session}~7-8", "nobody~1-1", f"{session}~2-1", f"{session}~0-0"):
        problem(http.get(f"/jobs/{unknown}"), 404)


def test_feedback_on_a_completion(http: httpx.Client, session: str) -> None:
    completion = ask(http, session)
    body = {"completion_id": completion["id"], "correction": ANSWER, "comment": "see <the> barn"}
    report = ok(http.post("/feedback", json=body))
    assert (report["accepted"], report["session_id"], report["items"]) == (True, session, [1])
    assert ask(http, session)["text"] == ANSWER
    item = ok(http.get(f"/sessions/{session}/feedback/1"))
    assert item["kind"] == "correction"
    assert item["completion"] == ANSWER
    assert item["messages"] == [{"role": "user", "content": QUESTION}]
    assert item["completion_id"] == completion["id"]
    assert item["comment"] == "see <the> barn"


def test_the_same_correction_is_taught_once_while_it_counts(
    http: httpx.Client, session: str
) -> None:
    completion = ask(http, session)["id"]

    def correct(text: str) -> dict[str, Any]:
        return ok(http.post("/feedback", json={"completion_id": completion, "correction": text}))

    first = correct("One.")
    assert correct("One.") == first
    assert correct("Two.")["items"] == [2]
    back = correct("One.")
    assert back["items"] == [3]
    assert correct("One.") == back
    assert ask(http, session)["text"] == "One."


@pytest.mark.parametrize("undo", ["reset", "rollback"])
def test_a_correction_that_was_undone_is_taken_anew(
    http: httpx.Client, session: str, undo: str
) -> None:
    body = {"completion_id": ask(http, session)["id"], "correction": ANSWER}
    keyed = {"Idempotency-Key": "k"}
    with_key = ok(http.post("/feedback", json=body, headers=keyed))
    first = ok(http.post("/feedback", json=body))
    assert first["items"] == [2]
    untaught = {"adapter_version": 0} if undo == "rollback" else None
    ok(http.post(f"/admin/sessions/{session}/{undo}", json=untaught))
    again = ok(http.post("/feedback", json=body))
    assert (again["accepted"], again["adapter_version"], again["items"]) == (True, 3, [3])
    assert ok(http.post("/feedback", json=body)) == again
    assert ask(http, session)["text"] == ANSWER
    assert ok(http.post("/feedback", json=body, headers=keyed)) == with_key, "what a key is for"


def test_completions_have_a_life(
    live: LiveServer, http: httpx.Client, new_session: Callable[[], str]
) -> None:
    problem(http.post("/feedback", json={"completion_id": "cmpl-x", "correction": "No."}), 404)
    session = new_session()
    completion = ask(http, session)["id"]
    assert http.delete(f"/sessions/{session}").status_code == 204
    body = {"completion_id": completion, "correction": "No."}
    problem(http.post("/feedback", json=body), 404)


def test_a_rating_alone(http: httpx.Client, session: str) -> None:
    completion = ask(http, session)
    body = {"completion_id": completion["id"], "rating": -1, "comment": "rude"}
    report = ok(http.post("/feedback", json=body))
    assert (report["accepted"], report["items"], report["examples_used"]) == (True, [1], 1)
    assert report["loss_after"] < report["loss_before"] == 0.25
    item = ok(http.get(f"/sessions/{session}/feedback/1"))
    assert (item["kind"], item["rating"], item["comment"]) == ("rating", -1, "rude")
    assert item["completion"] == completion["text"]
    assert ok(http.post("/feedback", json=body)) | {"duration_ms": 0} == report | {"duration_ms": 0}
    liked = ok(http.post("/feedback", json={"completion_id": completion["id"], "rating": 1}))
    assert (liked["items"], liked["examples_used"]) == ([2], 1)
    items = ok(http.get(f"/sessions/{session}/feedback"))["items"]
    assert [item["status"] for item in items] == ["superseded", "applied"]


def test_a_correction_outlives_ratings_of_the_same_prompt(http: httpx.Client, session: str) -> None:
    completion = ask(http, session)["id"]
    ok(http.post("/feedback", json={"completion_id": completion, "rating": 1}))
    both = {"completion_id": completion, "rating": -1, "correction": ANSWER}
    assert ok(http.post("/feedback", json=both))["examples_used"] == 1
    assert ask(http, session)["text"] == ANSWER
    learned = ask(http, session)["id"]
    ok(http.post("/feedback", json={"completion_id": learned, "rating": -1}))
    items = ok(http.get(f"/sessions/{session}/feedback"))["items"]
    assert [item["status"] for item in items] == ["superseded", "applied", "applied"]
    assert [item.get("rating") for item in items] == [1, -1, -1]
    assert ask(http, session)["text"] == ANSWER, "a rating never outweighs a correction"


def test_an_answer_that_was_cut_can_be_rated(http: httpx.Client, session: str) -> None:
    teach(http, session)
    cut = ask(http, session, max_tokens=2)
    assert cut["finish_reason"] == "length"
    report = ok(http.post("/feedback", json={"completion_id": cut["id"], "rating": 1}))
    assert (report["accepted"], report["examples_used"]) == (True, 3)
    assert ask(http, session)["text"] == ANSWER


@pytest.mark.parametrize("prompt", [QUESTION, "café 🙂 日本語 <b>"])
def test_an_answer_that_fills_the_context_can_be_judged(
    http: httpx.Client, session: str, prompt: str
) -> None:
    body = {"session_id": session, "prompt": prompt, "max_tokens": 164, "min_tokens": 150}
    whole = ok(http.post("/generate", json=body))
    assert whole["usage"]["completion_tokens"] >= 150
    assert ok(http.post("/feedback", json={"completion_id": whole["id"], "rating": -1}))["accepted"]
    corrected = {"completion_id": whole["id"], "correction": ANSWER}
    assert ok(http.post("/feedback", json=corrected))["accepted"]
    item = ok(http.get(f"/sessions/{session}/feedback/2"))
    assert (item["kind"], item["rejected"]) == ("correction", whole["text"])
    assert ask(http, session, prompt)["text"] == ANSWER


def test_a_preference(http: httpx.Client, session: str) -> None:
    worse = ask(http, session)["text"]
    pair = {"prompt": QUESTION, "chosen": ANSWER, "rejected": worse or "No."}
    report = teach(http, session, [pair, EXAMPLES[1]])
    assert (report["accepted"], report["examples_used"]) == (True, 2)
    assert ask(http, session)["text"] == ANSWER
    item = ok(http.get(f"/sessions/{session}/feedback/1"))
    assert (item["kind"], item["completion"]) == ("preference", ANSWER)
    assert item["rejected"] == pair["rejected"]
    assert teach(http, session, [pair], dry_run=True)["accepted"] is True
    told = teach(http, session, [{"prompt": QUESTION, "completion": "See the barn."}])
    assert told["examples_used"] == 2, "a demonstration supersedes a preference"


def test_what_waits_is_not_taught_by_forgetting(http: httpx.Client, session: str) -> None:
    teach(http, session)
    other = ask(http, session, "Hello?")["id"]
    ok(http.post("/feedback", json={"completion_id": other, "rating": -1, "adapt": False}), 202)
    ok(http.delete(f"/sessions/{session}/feedback/2"))
    assert ok(http.get(f"/sessions/{session}"))["pending_items"] == 1
    now = ok(http.post("/feedback", json={"completion_id": other, "rating": -1}))
    assert (now["items"], now["examples_used"]) == ([4], 2)
    assert ok(http.get(f"/sessions/{session}"))["pending_items"] == 0


def test_feedback_that_waits_for_the_next(http: httpx.Client, session: str) -> None:
    completion = ask(http, session)["id"]
    later = {"completion_id": completion, "correction": ANSWER, "adapt": False}
    response = http.post("/feedback", json=later)
    job = ok(response, 202)
    assert (job["status"], response.headers["location"]) == ("pending", f"/jobs/{job['id']}")
    assert ok(http.post("/feedback", json=later), 202)["id"] == job["id"]
    assert ok(http.get(f"/sessions/{session}"))["pending_items"] == 1
    assert teach(http, session, EXAMPLES[1:])["examples_used"] == 2
    assert ok(http.get(f"/jobs/{job['id']}"))["result"]["accepted"] is True
    assert ask(http, session)["text"] == ANSWER
