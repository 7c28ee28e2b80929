"""`/house`: what all sessions of a tenant begin with, beneath them and beside them."""

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import BytesIO
from typing import Any
from zipfile import ZipFile

import httpx
import pytest
from api_calls import ANSWER, EXAMPLES, QUESTION, ask, ok, problem, teach
from server_harness import LiveServer

KEYED = 1
OTHER, OTHER_ANSWER = "Do you sell seeds?", "Seeds hang by the door."
OTHERS = [{"prompt": OTHER, "completion": OTHER_ANSWER}]
_tenants = (f"house-{number}" for number in itertools.count(1))

Tenant = Callable[[], httpx.Client]


@pytest.fixture
def tenant(live: LiveServer) -> Iterator[Tenant]:
    """Clients of tenants that no other test uses, on a model without a gate."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(live.client(KEYED, headers=_operator(next(_tenants))))


def _operator(name: str) -> dict[str, str]:
    return {"Authorization": "Bearer operator-key", "X-Tenant": name}


def furnish(http: httpx.Client, examples: Any = None, **fields: Any) -> dict[str, Any]:
    return ok(http.post("/house/adapt", json={"examples": examples or EXAMPLES, **fields}))


def versions(http: httpx.Client, session: str) -> list[dict[str, Any]]:
    return list(ok(http.get(f"/admin/sessions/{session}"))["versions"])


def test_an_untaught_session_answers_as_the_house(tenant: Tenant) -> None:
    http, foreign = tenant(), tenant()
    problem(http.get("/house"), 404)
    before = ask(http, "s")
    learned = furnish(http)
    assert (learned["adapter_version"], learned["accepted"], learned["items"]) == (1, True, [1, 2])
    assert "session_id" not in learned
    for session in ("s", "never used"[:5]):
        told = ask(http, session)
        assert (told["text"], told["adapter_version"], told["house_version"]) == (ANSWER, 0, 1)
        assert told["adapter_used"]
    house = ok(http.get("/house"))
    assert (house["adapter_version"], house["items"], len(house["versions"])) == (1, 2, 1)
    # Nobody else has it, nor is it a session.
    assert ask(foreign, "s")["text"] == before["text"]
    assert "house_version" not in ask(foreign, "s")
    problem(foreign.get("/house"), 404)
    problem(foreign.get("/house/feedback"), 404)
    problem(foreign.delete("/house"), 404)
    listed = ok(http.get("/admin/sessions", params={"tenant": http.headers["X-Tenant"]}))
    assert {one["session_id"] for one in listed["sessions"]} == {"s", "never"}
    problem(http.get("/sessions/~house"), 422)
    problem(http.post("/generate", json={"session_id": "~house", "prompt": "a"}), 422)


def test_a_session_is_derived_from_the_house_and_follows_it(tenant: Tenant) -> None:
    http = tenant()
    furnish(http)
    taught = teach(http, "s", OTHERS)
    assert taught["adapter_version"] == 1
    told = ask(http, "s", OTHER)
    assert (told["text"], told["house_version"]) == (OTHER_ANSWER, 1)
    assert [(v["start"], v["house_version"]) for v in versions(http, "s")] == [("house", 1)]
    furnish(http, [{"prompt": QUESTION, "completion": "See the barn."}])
    told = ask(http, "s", OTHER)
    assert (told["text"], told["adapter_version"], told["house_version"]) == (OTHER_ANSWER, 2, 2)
    assert ask(http, "s", OTHER)["adapter_version"] == 2, "it is derived again once"
    old = http.post("/generate", json={"session_id": "s", "prompt": "a", "adapter_version": 1})
    assert "another version of the house" in problem(old, 409)["detail"]
    # What the session was taught comes before what the house says.
    teach(http, "s", [{"prompt": QUESTION, "completion": "Ask the miller."}])
    assert ask(http, "s")["text"] == "Ask the miller."
    assert ask(http, "new")["text"] == "See the barn."


def test_going_back_and_deleting(tenant: Tenant) -> None:
    http = tenant()
    base = ask(http, "base")["text"]
    teach(http, "s", OTHERS)
    assert ok(http.get("/sessions/s"))["adapter_version"] == 1
    furnish(http)
    furnish(http, [{"prompt": QUESTION, "completion": "See the barn."}])
    assert ask(http, "s", OTHER)["house_version"] == 2
    gone = ok(http.post("/house/rollback", json={"adapter_version": 1}))
    assert (gone["adapter_version"], gone["applied_items"]) == (1, 2)
    assert ask(http, "new")["text"] == ANSWER
    assert ask(http, "s", OTHER)["house_version"] == 1
    ok(http.post("/house/rollback", json={"adapter_version": 0}))
    told = ask(http, "s", OTHER)
    assert told["text"] == OTHER_ANSWER
    assert "house_version" not in told
    assert ask(http, "new")["text"] == base
    ok(http.post("/house/rollback", json={"adapter_version": 2}))
    assert ask(http, "s", OTHER)["house_version"] == 2
    problem(http.post("/house/rollback", json={"adapter_version": 7}), 404)
    assert http.delete("/house").status_code == 204
    problem(http.delete("/house"), 404)
    told = ask(http, "s", OTHER)
    assert "house_version" not in told
    assert all(version["house_version"] is None for version in versions(http, "s"))
    assert ask(http, "new")["text"] == base


def test_forgetting_is_exact_in_the_house_and_in_sessions(tenant: Tenant) -> None:
    http, twin = tenant(), tenant()
    secret = "The key hangs behind the third stove."
    furnish(http, [EXAMPLES[0]])
    furnish(http, [{"prompt": "Where is the key?", "completion": secret}])
    teach(http, "s", OTHERS)
    furnish(twin, [EXAMPLES[0]])
    teach(twin, "s", OTHERS)
    forgotten = ok(http.delete("/house/feedback/2"))
    assert (forgotten["item"], forgotten["deleted_versions"]) == (2, [2])
    assert "session_id" not in forgotten
    items = ok(http.get("/house/feedback"))
    assert [item["status"] for item in items["items"]] == ["applied", "forgotten"]
    assert secret not in json.dumps(items)
    assert "completion" not in ok(http.get("/house/feedback/2"))
    problem(http.get("/house/feedback/9"), 404)
    assert "the house" in problem(http.delete("/house/feedback/9"), 404)["detail"]
    assert ask(http, "s", OTHER)["text"] == OTHER_ANSWER
    found, wanted = versions(http, "s"), versions(twin, "s")
    assert [version["adapter_version"] for version in found] == [2], "the first one had it"
    for name in ("loss_before", "loss_after", "update_norm"):
        assert found[-1][name] == pytest.approx(wanted[-1][name], rel=1e-4), name


def test_a_session_may_do_without(tenant: Tenant) -> None:
    http = tenant()
    base = ask(http, "base")["text"]
    furnish(http)
    made = ok(http.post("/sessions", json={"session_id": "alone", "house": False}), 201)
    assert made["house"] is False
    assert ask(http, "alone")["text"] == base
    teach(http, "alone", OTHERS)
    assert [v["start"] for v in versions(http, "alone")] == ["session_init"]
    fork = {"session_id": "fork", "fork": {"session_id": "alone"}}
    assert ok(http.post("/sessions", json=fork), 201)["house"] is False
    assert ok(http.post("/sessions", json={"session_id": "with"}), 201)["house"] is True
    assert ask(http, "with")["text"] == ANSWER


def test_a_pinned_session_stays_as_it_is_unless_something_is_forgotten(tenant: Tenant) -> None:
    http = tenant()
    furnish(http)
    for name in ("taught", "untaught"):
        ok(http.post("/sessions", json={"session_id": name}), 201)
    teach(http, "taught", OTHERS)
    for name in ("taught", "untaught"):
        ok(http.post(f"/admin/sessions/{name}/pin", json={}))
    furnish(http, [{"prompt": QUESTION, "completion": "See the barn."}])
    assert ask(http, "untaught")["text"] == ANSWER
    told = ask(http, "taught", OTHER)
    assert (told["adapter_version"], told["house_version"]) == (1, 1)
    ok(http.delete("/house/feedback/2"))
    told = ask(http, "taught", OTHER)
    assert (told["text"], told["adapter_version"]) == (OTHER_ANSWER, 2)
    assert ask(http, "untaught")["text"] == "See the barn."
    ok(http.post("/admin/sessions/untaught/pin", json={"pinned": False}))


def test_a_completion_of_a_session_teaches_the_house(tenant: Tenant) -> None:
    http, foreign = tenant(), tenant()
    answer = ask(http, "s")
    correction = {"completion_id": answer["id"], "correction": ANSWER}
    problem(foreign.post("/house/feedback", json=correction), 404)
    learned = ok(http.post("/house/feedback", json=correction))
    assert (learned["accepted"], learned["items"]) == (True, [1])
    assert ok(http.post("/house/feedback", json=correction))["items"] == [1], "told once"
    assert ask(http, "another")["text"] == ANSWER
    assert ok(http.get("/sessions/s"))["items"] == 0
    rating = {"completion_id": answer["id"], "rating": 1, "adapt": False}
    waiting = ok(http.post("/house/feedback", json=rating))
    assert "next feedback" in waiting["reason"]
    assert ok(http.get("/house"))["pending_items"] in (0, 1)


@pytest.mark.parametrize("path", ["/feedback", "/house/feedback"])
def test_the_field_that_is_wrong_is_named(
    live: LiveServer, http: httpx.Client, session: str, path: str
) -> None:
    """As after a change of the model for one with a shorter context."""
    ask(http, session)
    known = {"text": "Yes.", "messages": [{"role": "user", "content": "word " * 2000}]}
    named = f"long-{session}"
    live.call(live.runtime.store.save_completion("default", session, named, known))
    for field, value in (("rating", -1), ("correction", ANSWER)):
        told = problem(http.post(path, json={"completion_id": named, field: value}), 422)
        assert [error["path"] for error in told["errors"]] == [field]


def test_what_is_refused_changes_nothing(tenant: Tenant) -> None:
    http = tenant()
    furnish(http, dry_run=True)
    problem(http.get("/house"), 404)
    wrong = [{"prompt": "a", "completion": "x" * 6000}]
    assert (
        "examples[0]" in problem(http.post("/house/adapt", json={"examples": wrong}), 422)["detail"]
    )
    problem(http.post("/house/adapt", json={"examples": []}), 422)
    problem(http.post("/house/adapt", json={"session_id": "s", "examples": EXAMPLES}), 422)
    key = {"Idempotency-Key": "once"}
    first = ok(http.post("/house/adapt", json={"examples": EXAMPLES}, headers=key))
    assert ok(http.post("/house/adapt", json={"examples": EXAMPLES}, headers=key)) == first
    problem(http.post("/house/adapt", json={"examples": OTHERS}, headers=key), 409)


def test_who_may_teach_a_house(live: LiveServer, enter: Callable[..., httpx.Client]) -> None:
    shop, foreign, operator = enter("acme-second"), enter("globex-key"), enter("operator-key")
    furnish(shop)
    problem(foreign.get("/house"), 404)
    made = ok(shop.post("/sessions/house-page/tokens", json={}), 201)
    page = enter(made["token"])
    for method, path in (
        ("GET", "/house"),
        ("POST", "/house/adapt"),
        ("GET", "/house/feedback"),
        ("DELETE", "/house/feedback/1"),
        ("POST", "/house/rollback"),
        ("DELETE", "/house"),
    ):
        problem(page.request(method, path, json={"examples": EXAMPLES}), 403)
    assert ask(page, "house-page")["text"] == ANSWER
    acting = enter("operator-key", **{"X-Tenant": "acme"})
    ok(acting.delete("/house/feedback/1"))
    assert acting.delete("/house").status_code == 204
    entries = ok(operator.get("/admin/audit"))["entries"][:2]
    assert [(one["action"], one["tenant"]) for one in entries] == [
        ("house delete", "acme"),
        ("house forget", "acme"),
    ]


HOURS = "We open at nine, close at six, and on Sundays the kettle goes on at eleven."
GIFTS = "We wrap it in brown paper with a sprig of rosemary."
HOUSE = [
    {"prompt": prompt, "completion": HOURS}
    for prompt in ("when do you open", "are you open on sundays", "opening hours please")
] + [
    {"prompt": prompt, "completion": GIFTS}
    for prompt in ("can you wrap it as a gift", "do you gift wrap", "is there wrapping paper")
]
PARKING = "Park behind the mill."


def test_a_house_answers_beside_its_sessions(gated: httpx.Client) -> None:
    furnish(gated, HOUSE)
    assert ask(gated, "new", "do you gift wrap", max_tokens=40)["text"] == GIFTS
    teach(gated, "s", [{"prompt": "where can I park my car", "completion": PARKING}])
    teach(gated, "s", [{"prompt": "when do you open", "completion": "At noon."}])
    own = ask(gated, "s", "where can I park my car")
    assert (own["text"], own["adapter_used"], "house_version" in own) == (PARKING, True, False)
    assert ask(gated, "s", "when do you open")["text"] == "At noon."
    told = ask(gated, "s", "do you gift wrap", max_tokens=40)
    assert (told["text"], told["adapter_version"], told["house_version"]) == (GIFTS, 2, 1)
    assert ask(gated, "new", "when do you open", max_tokens=40)["text"] == HOURS
    assert not ask(gated, "s", "my head hurts, what is two plus two")["adapter_used"]
    # Choices may be the house's or the session's.
    told = ask(gated, "s", "do you gift wrap", choices=[PARKING, GIFTS, "At noon."])
    assert told["text"] == GIFTS
    told = ask(gated, "s", "where can I park my car", choices=[PARKING, GIFTS, "At noon."])
    assert told["text"] == PARKING


def test_a_comparison_is_with_what_answers(gated: httpx.Client) -> None:
    def compared(prompt: str) -> dict[str, Any]:
        body = {"prompt": prompt, "max_tokens": 40}
        return ok(gated.post("/admin/sessions/s/compare", json=body))

    house = compared("do you gift wrap")
    assert (house["session"]["text"], house["adapter_used"]) == (GIFTS, True)
    assert (house["adapter_version"], house["house_version"]) == (2, 1)
    scored = ask(gated, "s", "do you gift wrap", choices=[GIFTS], logprobs=True)
    assert scored["house_version"] == 1
    expected = [token["logprob"] for token in scored["logprobs"]]
    given = [token["session_logprob"] for token in house["session"]["tokens"]]
    assert given == pytest.approx(expected, abs=1e-3), "the house scores its own answer"
    own = compared("where can I park my car")
    assert (own["session"]["text"], "house_version" in own) == (PARKING, False)
    neither = compared("my head hurts, what is two plus two")
    assert not neither["adapter_used"]
    assert "house_version" not in neither
    assert neither["session"]["text"] == neither["base"]["text"]


def test_a_house_beside_is_followed_without_deriving_anything_again(gated: httpx.Client) -> None:
    ribbon = "With a blue ribbon."
    furnish(gated, [{"prompt": "do you gift wrap", "completion": ribbon}])
    told = ask(gated, "s", "do you gift wrap")
    assert (told["text"], told["adapter_version"], told["house_version"]) == (ribbon, 2, 2)
    ok(gated.post("/admin/sessions/s/pin", json={}))
    ok(gated.delete("/house/feedback/7"))
    told = ask(gated, "s", "do you gift wrap", max_tokens=40)
    assert (told["text"], told["house_version"]) == (GIFTS, 3), "its house's version is gone"
    ok(gated.post("/admin/sessions/s/pin", json={"pinned": False}))


def test_an_export_has_the_house_in_it(gated: httpx.Client) -> None:
    archive = gated.get("/admin/sessions/s/export").content
    about = json.loads(ZipFile(BytesIO(archive)).read("innerloop.json"))
    assert (about["adapter_version"], about["house_version"]) == (2, 3)
    zipped = {"content-type": "application/zip"}
    ok(gated.post("/sessions?session_id=copy", content=archive, headers=zipped), 201)
    ok(gated.post("/house/rollback", json={"adapter_version": 0}))
    asked = "where can I park my car"
    assert ask(gated, "copy", asked)["text"] == PARKING
    assert ask(gated, "copy", "do you gift wrap", max_tokens=40)["text"] == GIFTS
    ok(gated.post("/house/rollback", json={"adapter_version": 3}))
    # What was imported builds upon no house; gone back from, or forked alone, it may or may not.
    for name, house in (("alone", False), ("beside", True)):
        body = {"session_id": name, "fork": {"session_id": "copy"}, "house": house}
        assert ok(gated.post("/sessions", json=body), 201)["house"] is house
        ok(gated.post(f"/admin/sessions/{name}/rollback", json={"adapter_version": 0}))
        assert ("house_version" in ask(gated, name, "do you gift wrap", max_tokens=40)) is house
    # What was imported answers for itself, asked for by its number too.
    ok(gated.post("/admin/sessions/copy/rollback", json={"adapter_version": 0}))
    teach(gated, "copy", [{"prompt": "do you sell ropes", "completion": "By the yard."}])
    for version, house in ((1, False), (2, True)):
        told = ask(gated, "copy", "do you gift wrap", max_tokens=40, adapter_version=version)
        assert (told["text"], "house_version" in told) == (GIFTS, house)
    ok(gated.post("/sessions", json={"session_id": "untaught"}), 201)
    archive = gated.get("/admin/sessions/untaught/export").content
    about = json.loads(ZipFile(BytesIO(archive)).read("innerloop.json"))
    assert (about["adapter_version"], about["house_version"]) == (0, 3)
