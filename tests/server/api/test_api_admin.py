"""/admin: lists, one session's history, rollback and reset, the engine; health."""

from collections.abc import Callable

import httpx
from api_calls import ANSWER, EXAMPLES, QUESTION, ask, ok, problem, teach
from redis_process import until


def test_sessions_by_page_filter_and_order(
    http: httpx.Client, new_session: Callable[[], str]
) -> None:
    mark = new_session().replace(":", "-")
    names = [f"{mark}.{letter}" for letter in "abc"]
    for name in names:
        ok(http.post("/sessions", json={"session_id": name}), 201)
    teach(http, names[1], EXAMPLES[:1])

    def listed(**query: object) -> list[str]:
        found = ok(http.get("/admin/sessions", params={"contains": f"{mark}.", **query}))
        assert found["total"] >= len(found["sessions"])
        return [row["session_id"] for row in found["sessions"]]

    assert listed(sort="session_id", order="asc") == names
    assert listed(sort="session_id", order="desc", offset=1, limit=1) == [names[1]]
    assert listed(sort="adapter_version")[0] == names[1]
    assert listed(taught=True) == [names[1]]
    assert listed(taught=False, sort="created_at", order="asc") == [names[0], names[2]]
    assert listed(tenant="nobody") == []
    assert listed(tenant="default", sort="items")[0] == names[1]
    problem(http.get("/admin/sessions", params={"sort": "colour"}), 422)
    problem(http.get("/admin/sessions", params={"limit": 0}), 422)


def test_one_session(http: httpx.Client, session: str) -> None:
    teach(http, session)
    report = teach(http, session, [{"prompt": "Hello", "completion": "Hi."}])
    found = ok(http.get(f"/admin/sessions/{session}"))
    assert (found["tenant"], found["adapter_version"]) == ("default", 2)
    first, second = found["versions"]
    assert (first["items"], second["items"]) == ([1, 2], [1, 2, 3])
    assert second["loss_after"] == report["loss_after"]
    assert len(second["step_losses"]) == len(second["gradient_norms"]) == report["steps"]
    assert second["step_losses"][-1] < second["step_losses"][0]
    assert second["snapshot_bytes"] > 1000
    assert [item["status"] for item in found["feedback"]] == ["applied"] * 3
    assert [line["type"] for line in found["log"]] == [
        "promote",
        "feedback",
        "promote",
        "feedback",
        "create",
    ]
    problem(http.get("/admin/sessions/nobody"), 404)


def test_rollback_and_reset(http: httpx.Client, session: str) -> None:
    untaught = ask(http, session)["text"]
    teach(http, session)
    teach(http, session, [{"prompt": QUESTION, "completion": "Look at the barn."}])
    back = ok(http.post(f"/admin/sessions/{session}/rollback", json={"adapter_version": 1}))
    assert back["adapter_version"] == 1
    assert ask(http, session)["text"] == ANSWER
    statuses = [item["status"] for item in ok(http.get(f"/sessions/{session}/feedback"))["items"]]
    assert statuses == ["applied", "applied", "refused"]
    # What was rolled back stays out of later derivations.
    report = teach(http, session, [{"prompt": "Hello", "completion": "Hi."}])
    assert (report["adapter_version"], report["examples_used"]) == (3, 3)
    assert ask(http, session)["text"] == ANSWER
    assert ok(http.post(f"/admin/sessions/{session}/reset"))["adapter_version"] == 0
    assert ask(http, session)["text"] == untaught
    path = f"/admin/sessions/{session}/rollback"
    problem(http.post(path, json={"adapter_version": 8}), 404)
    problem(http.post(path, json={"adapter_version": -1}), 422)
    for action in ("rollback", "reset"):
        response = http.post(f"/admin/sessions/nobody/{action}", json={"adapter_version": 0})
        problem(response, 404)


def test_a_pinned_session_keeps_its_version_until_it_is_unpinned(
    http: httpx.Client, session: str
) -> None:
    where = f"/admin/sessions/{session}"
    problem(http.post(f"{where}/pin", json={}), 404)
    teach(http, session)
    assert ok(http.post(f"{where}/pin", json={}))["pinned"] is True
    late = {
        "session_id": session,
        "examples": [{"prompt": QUESTION, "completion": "See the barn."}],
    }
    key = {"Idempotency-Key": "late"}
    told = ok(http.post("/adapt", json=late, headers=key))
    assert (told["accepted"], told["adapter_version"], told["items"]) == (False, 1, [3])
    assert "unpinned" in told["reason"]
    assert ask(http, session)["text"] == ANSWER
    assert ok(http.get(f"/sessions/{session}"))["pending_items"] == 1
    assert ok(http.post("/adapt", json=late, headers=key)) == told
    # Forgetting cannot be blocked, and teaches nothing of what waits.
    assert ok(http.delete(f"/sessions/{session}/feedback/2"))["adapter_version"] == 2
    assert ask(http, session)["text"] == ANSWER
    assert ok(http.get(where))["versions"][-1]["items"] == [1]
    body = {"session_id": f"{session}-fork", "fork": {"session_id": session}}
    assert ok(http.post("/sessions", json=body), 201)["items"] == 1
    assert ask(http, f"{session}-fork")["text"] == ANSWER, "what is in force, not what waits"
    assert ok(http.post(f"{where}/pin", json={"pinned": False}))["pinned"] is False
    until(lambda: not ok(http.get(f"/sessions/{session}"))["pending_items"])
    assert ask(http, session)["text"] == "See the barn."
    assert ok(http.post("/adapt", json=late, headers=key))["accepted"] is True
    types = [line["type"] for line in ok(http.get(where))["log"]]
    assert [name for name in types if "pin" in name] == ["unpin", "pin"]


def test_an_old_version_is_derived_again_when_it_is_gone_back_to(
    http: httpx.Client, session: str
) -> None:
    teach(http, session)
    for number in range(5):
        teach(http, session, [{"prompt": f"Number {number}?", "completion": f"It is {number}."}])
    where = f"/admin/sessions/{session}"
    sizes = [version["snapshot_bytes"] for version in ok(http.get(where))["versions"]]
    assert [size > 0 for size in sizes] == [False, False, True, True, True, True]
    old = ask(http, session, adapter_version=1)
    assert (old["text"], old["adapter_version"]) == (ANSWER, 1)
    assert http.get(f"{where}/export", params={"adapter_version": 2}).status_code == 200
    back = ok(http.post(f"{where}/rollback", json={"adapter_version": 2}))
    assert back["adapter_version"] == 2
    assert ask(http, session, "Number 0?")["text"] == "It is 0."
    assert ask(http, session, "Number 0?")["adapter_version"] == 2
    found = ok(http.get(where))["versions"]
    assert [version["adapter_version"] for version in found] == [1, 2, 3, 4, 5, 6]
    assert all(version["snapshot_bytes"] for version in found)


def test_engine(http: httpx.Client, session: str) -> None:
    before = ok(http.get("/admin/engine"))
    assert before["running"] is True
    assert (before["model"], before["context_tokens"]) == ("tiny-test", 192)
    ask(http, session)
    # It counts after it has answered.
    until(lambda: ok(http.get("/admin/engine"))["requests_finished"] > before["requests_finished"])


def test_health(http: httpx.Client) -> None:
    assert ok(http.get("/healthz")) == {"status": "ok"}
    ready = ok(http.get("/readyz"))
    assert (ready["status"], ready["model"]) == ("ready", "tiny-test")
    assert len(ready["base_fingerprint"]) == 64


def test_openapi_document(http: httpx.Client) -> None:
    document = ok(http.get("/openapi.json"))
    schemas = document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for name, operation in operations.items():
            answers = operation["responses"]
            assert "422" not in answers, f"{name} {path} documents FastAPI's own error shape"
            assert "default" in answers or path.startswith("/problems")
    for name in ("GenerateBody", "AdaptBody", "FeedbackBody", "ChatBody"):
        assert schemas[name]["additionalProperties"] is False
        assert "example" in schemas[name]
    assert "ProblemDocument" in schemas
