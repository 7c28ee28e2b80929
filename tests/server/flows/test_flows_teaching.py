"""Teaching on a real engine and a real Redis: races, refusals, crashes, other replicas."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from server_model import make_model_folder

from adapters.artifact import Artifact
from adapters.chat import ChatEncoder
from adapters.config import InnerRule
from server.engine import Engine, EngineLimits
from server.flows import fullness
from server.flows.deriving import Derived, Deriver
from server.flows.encoding import Encoding
from server.flows.housing import Houses
from server.flows.loading import Loader
from server.flows.locks import SessionLocks
from server.flows.outcome import Lesson, LessonError, SessionFull
from server.flows.rebuilding import Rebuilder
from server.flows.spending import Spending, budgets
from server.flows.teaching import Teacher
from server.sessions import (
    IdempotencyConflict,
    Item,
    NewItem,
    SessionNotFound,
    SessionStore,
    VersionRecord,
    prompt_key,
)
from server.settings import Settings

pytestmark = pytest.mark.anyio

TENANT = "default"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
async def deriver(artifact: Artifact, store: SessionStore) -> AsyncIterator[Deriver]:
    async for made in _deriver(artifact, store):
        yield made


@pytest.fixture
async def wild(artifact: Artifact, store: SessionStore) -> AsyncIterator[Deriver]:
    """Its steps are far too long, so that the guard refuses what comes out."""
    sizes = {name: torch.full((12,), 300.0) for name in artifact.session_init}
    async for made in _deriver(replace(artifact, rule=InnerRule(12, sizes, 1.5)), store):
        yield made


@pytest.fixture
async def hasty(artifact: Artifact, store: SessionStore) -> AsyncIterator[Deriver]:
    """Its steps are too long, so that the guard takes a part of what comes out."""
    async for made in _deriver(_hasty(artifact), store):
        yield made


@pytest.fixture
async def hasty_and_strict(artifact: Artifact, store: SessionStore) -> AsyncIterator[Deriver]:
    """The same, but its guard halves nothing."""
    async for made in _deriver(_hasty(artifact), store, halvings=0):
        yield made


def _hasty(artifact: Artifact) -> Artifact:
    sizes = {name: 4 * sizes for name, sizes in artifact.rule.step_sizes.items()}
    return replace(artifact, rule=replace(artifact.rule, step_sizes=sizes))


async def _deriver(
    artifact: Artifact, store: SessionStore, **limits: int
) -> AsyncIterator[Deriver]:
    engine = Engine(artifact, EngineLimits(threads=1, patience_s=600.0, **limits))
    engine.start()
    spending = Spending(store.access, budgets(Settings()))
    yield Deriver(artifact, engine, Encoding(ChatEncoder(artifact.tokenizer)), spending)
    await engine.stop(0)


def houses(deriver: Deriver, store: SessionStore) -> Houses:
    plain = Rebuilder(deriver, store, SessionLocks())
    return Houses(Loader(deriver.artifact, store), store, plain)


def teacher_of(deriver: Deriver, store: SessionStore) -> Teacher:
    return Teacher(deriver, store, SessionLocks(), houses(deriver, store))


def rebuilder(deriver: Deriver, store: SessionStore) -> Rebuilder:
    return Rebuilder(deriver, store, SessionLocks(), houses(deriver, store))


def lesson(prompt: str = "Where is my order?", completion: str = "In the barn.") -> Lesson:
    return Lesson([{"role": "user", "content": prompt}], completion)


async def taught(teacher: Teacher, session: str, *lessons: Lesson) -> bool:
    appended = await teacher.append(TENANT, session, lessons, None, "")
    return (await teacher.teach(TENANT, session, appended.items)).accepted


async def statuses(store: SessionStore, session: str) -> list[str]:
    return [item.status for item in await store.items(TENANT, session)]


async def test_two_replicas_teach_one_session(deriver: Deriver, store: SessionStore) -> None:
    replicas = [teacher_of(deriver, store) for _ in range(3)]
    prompts = ["Where do I park?", "Are dogs allowed?", "Do you take cash?"]
    results = await asyncio.gather(
        *(
            taught(replica, "s", lesson(prompt))
            for replica, prompt in zip(replicas, prompts, strict=True)
        )
    )
    assert results == [True] * 3
    assert await statuses(store, "s") == ["applied"] * 3
    newest = (await store.versions(TENANT, "s"))[-1]
    assert newest.record.item_ids == (1, 2, 3)
    assert (await store.pointer(TENANT, "s")).version == newest.number


async def test_derived_over_the_same_items_the_bytes_are_the_same(
    deriver: Deriver, store: SessionStore
) -> None:
    teacher = teacher_of(deriver, store)
    lessons = [lesson(), lesson("Are dogs allowed?", "Yes.")]
    await taught(teacher, "at once", *lessons)
    for one in lessons:
        await taught(teacher, "one by one", one)
    await taught(teacher, "with a detour", *lessons, lesson("Hello", "Hi."))
    await rebuilder(deriver, store).forget(TENANT, "with a detour", 3)
    snapshots = [
        await store.snapshot(TENANT, session, (await store.pointer(TENANT, session)).version)
        for session in ("at once", "one by one", "with a detour")
    ]
    assert snapshots[0] == snapshots[1] == snapshots[2]


async def test_refusal_changes_no_version(
    deriver: Deriver, wild: Deriver, store: SessionStore
) -> None:
    await taught(teacher_of(deriver, store), "s", lesson())
    before = await store.snapshot(TENANT, "s", 1)
    teacher = teacher_of(wild, store)
    appended = await teacher.append(TENANT, "s", [lesson("Hello", "Hi.")], "key", "hash")
    outcome = await teacher.teach(TENANT, "s", appended.items, key="key")
    assert not outcome.accepted
    assert outcome.reason
    assert (outcome.adapter_version, outcome.items) == (1, (2,))
    pointer = await store.pointer(TENANT, "s")
    assert (pointer.version, pointer.pending, pointer.applied) == (1, 0, 1)
    assert await store.snapshot(TENANT, "s", 1) == before
    item = await store.item(TENANT, "s", 2)
    assert (item.status, item.reason) == ("refused", outcome.reason)
    again = await teacher.append(TENANT, "s", [lesson("Hello", "Hi.")], "key", "hash")
    assert (again.repeated, again.outcome) == (True, outcome)
    assert await teacher.outcome(TENANT, "s", [2]) is not None


async def test_what_was_refused_is_taken_anew(
    deriver: Deriver, wild: Deriver, store: SessionStore
) -> None:
    for teacher, accepted in (
        (teacher_of(wild, store), False),
        (teacher_of(wild, store), False),
        (teacher_of(deriver, store), True),
    ):
        appended = await teacher.append_once(TENANT, "s", lesson(), "digest")
        assert not appended.repeated
        outcome = await teacher.teach(TENANT, "s", appended.items, key=appended.key)
        assert outcome.accepted is accepted
    assert await statuses(store, "s") == ["refused", "refused", "applied"]
    again = await teacher_of(deriver, store).append_once(TENANT, "s", lesson(), "digest")
    assert (again.items, again.outcome) == ((3,), outcome)


async def test_a_part_of_an_update_is_taken_and_its_scale_kept(
    hasty: Deriver, hasty_and_strict: Deriver, store: SessionStore
) -> None:
    """Whoever derives the version again takes the same part, whatever its own guard would do."""
    teacher = teacher_of(hasty, store)
    appended = await teacher.append(TENANT, "s", [lesson()], None, "")
    outcome = await teacher.teach(TENANT, "s", appended.items)
    assert outcome.accepted
    assert "taken at 0.5 of its length" in str(outcome.reason)
    assert (await store.item(TENANT, "s", 1)).status == "applied"
    later = await teacher.outcome(TENANT, "s", appended.items)
    assert later is not None
    assert (later.accepted, later.reason) == (True, outcome.reason)
    (version,) = await store.versions(TENANT, "s")
    assert version.record.guard["scale"] == 0.5
    kept, pointer = await store.snapshot(TENANT, "s", 1), await store.pointer(TENANT, "s")
    for deriver in (hasty, hasty_and_strict):
        await store.restore(pointer, 1, b"lost")
        assert await rebuilder(deriver, store).restore(pointer, 1)
        assert await store.snapshot(TENANT, "s", 1) == kept
        mended = await rebuilder(deriver, store).mend(await store.pointer(TENANT, "s"))
        assert await store.snapshot(TENANT, "s", mended.version) == kept


async def test_many_items_are_derived_again_in_the_same_minibatches(
    deriver: Deriver, store: SessionStore
) -> None:
    """A version from before there were any is derived as it was: over all items at every step."""
    lessons = [lesson(f"Question {number}?", "Yes.") for number in range(18)]
    await taught(teacher_of(deriver, store), "s", *lessons)
    (version,) = await store.versions(TENANT, "s")
    assert version.record.guard["items_a_step"] == 16
    assert len(version.record.guard["step_losses"]) == 2 * version.record.steps
    kept, pointer = await store.snapshot(TENANT, "s", 1), await store.pointer(TENANT, "s")
    await store.restore(pointer, 1, b"lost")
    assert await rebuilder(deriver, store).restore(pointer, 1)
    assert await store.snapshot(TENANT, "s", 1) == kept
    items, steps = await store.derivable(TENANT, "s"), version.record.steps
    guard = {key: value for key, value in version.record.guard.items() if key != "items_a_step"}
    older = await deriver.derive(TENANT, "s", items, steps, replace(version.record, guard=guard))
    assert older.candidate is not None
    assert len(older.candidate.step_losses) == steps
    assert deriver.record(older).guard["items_a_step"] is None


async def test_forgetting_gives_what_was_there_before_in_part_too(
    hasty: Deriver, store: SessionStore
) -> None:
    teacher = teacher_of(hasty, store)
    await taught(teacher, "s", lesson())
    before = await store.snapshot(TENANT, "s", 1)
    await taught(teacher, "s", lesson("Hello", "Hi."))
    forgotten = await rebuilder(hasty, store).forget(TENANT, "s", 2)
    assert forgotten.reason is None
    assert await store.snapshot(TENANT, "s", forgotten.adapter_version) == before


async def test_what_no_part_helps_is_refused_for_what_the_whole_did(
    wild: Deriver, store: SessionStore
) -> None:
    outcome_of = teacher_of(wild, store)
    appended = await outcome_of.append(TENANT, "s", [lesson()], None, "")
    outcome = await outcome_of.teach(TENANT, "s", appended.items)
    assert not outcome.accepted
    assert "taken" not in str(outcome.reason)
    assert await statuses(store, "s") == ["refused"]


async def test_the_guard_cannot_block_forgetting(
    deriver: Deriver, wild: Deriver, store: SessionStore
) -> None:
    await taught(teacher_of(deriver, store), "s", lesson(), lesson("Hello", "Hi."))
    forgotten = await rebuilder(wild, store).forget(TENANT, "s", 2)
    assert (forgotten.adapter_version, forgotten.deleted_versions) == (0, (1,))
    assert forgotten.reason
    assert await store.versions(TENANT, "s") == ()
    assert await statuses(store, "s") == ["refused", "forgotten"]


async def test_forgetting_refuses_what_was_judged_and_nothing_else(
    deriver: Deriver, wild: Deriver, store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits, and what comes while the rest is derived over, is judged in its own time."""
    teacher, forgetful = teacher_of(deriver, store), rebuilder(wild, store)
    derive = wild.derive

    async def slowly(*args: Any, **named: Any) -> Derived:
        derived = await derive(*args, **named)
        await teacher.append(TENANT, session, [lesson("Cash?", "No.")], None, "")
        return derived

    monkeypatch.setattr(wild, "derive", slowly)
    for session in ("forgotten", "purged"):
        await taught(teacher, session, lesson(), lesson("Hello", "Hi."))
        later = replace(lesson("Dogs?", "Yes."), extra={"deferred": True})
        await teacher.append(TENANT, session, [later], None, "")
        if session == "forgotten":
            assert (await forgetful.forget(TENANT, session, 2)).adapter_version == 0
        else:
            await store.forget(TENANT, session, 2)
            await forgetful.purge(await store.pointer(TENANT, session))
        assert await statuses(store, session) == ["refused", "forgotten", "pending", "pending"]
        assert await store.versions(TENANT, session) == ()
        pointer = await store.pointer(TENANT, session)
        assert (pointer.version, pointer.unpurged) == (0, False)
        assert await teacher.finish(pointer)
        assert await statuses(store, session) == ["refused", "forgotten", "applied", "applied"]


async def test_mending_that_is_refused_leaves_the_version_for_its_own_base(
    deriver: Deriver, wild: Deriver, store: SessionStore
) -> None:
    await taught(teacher_of(deriver, store), "s", lesson())
    pointer = await store.pointer(TENANT, "s")
    wild_one = rebuilder(wild, store)
    for _ in range(2):
        assert (await wild_one.mend(pointer)).version == 0
    assert await store.pointer(TENANT, "s") == pointer
    mended = await rebuilder(deriver, store).mend(pointer)
    assert mended.version == 2
    assert await store.snapshot(TENANT, "s", 1) == await store.snapshot(TENANT, "s", 2)
    # Whoever comes with the old pointer is given the new one, and nothing is derived.
    assert (await rebuilder(deriver, store).mend(pointer)).version == 2


async def test_items_that_this_model_cannot_be_taught_are_refused_alone(
    deriver: Deriver, store: SessionStore
) -> None:
    teacher = teacher_of(deriver, store)
    bad = {"messages": [{"role": "user", "content": "<|end|>"}], "completion": "x"}
    good = {"messages": [{"role": "user", "content": "Hello"}], "completion": "Hi."}
    items = [
        NewItem("demonstration", payload, prompt_key(payload["messages"]))
        for payload in (bad, good)
    ]
    appended = await store.append(TENANT, "s", items)
    outcome = await teacher.teach(TENANT, "s", appended.item_ids)
    assert outcome.examples_used == 1
    assert await statuses(store, "s") == ["refused", "applied"]
    await store.append(TENANT, "only", items[:1])
    assert not (await teacher.teach(TENANT, "only", [1])).accepted
    assert await statuses(store, "only") == ["refused"]


async def test_finish_does_what_a_crash_left(deriver: Deriver, store: SessionStore) -> None:
    teacher = teacher_of(deriver, store)
    one = await teacher.append(TENANT, "s", [lesson()], "first", "hash")
    await teacher.append(TENANT, "s", [lesson("Hello", "Hi.")], None, "")
    (pointer,) = await store.pending_sessions()
    await teacher.finish(pointer)
    assert await statuses(store, "s") == ["applied", "applied"]
    assert await store.pending_sessions() == ()
    repeated = await teacher.append(TENANT, "s", [lesson()], "first", "hash")
    assert repeated.items == one.items
    assert repeated.outcome is not None
    assert repeated.outcome.accepted


async def test_who_finds_its_work_done_gives_the_answer_that_is_kept(
    deriver: Deriver, store: SessionStore
) -> None:
    """After a crash another request finishes the work, and what it made may be gone by then."""
    teacher, again = teacher_of(deriver, store), rebuilder(deriver, store)
    other = await teacher.append(TENANT, "s", [lesson("Hello", "Hi.")], None, "")
    ours = await teacher.append(TENANT, "s", [lesson()], "key", "hash")
    kept = await teacher.teach(TENANT, "s", ours.items, key="key")
    await again.forget(TENANT, "s", other.items[0])  # with the version that both came into
    assert await teacher.teach(TENANT, "s", ours.items, key="key") == kept
    repeated = await teacher.append(TENANT, "s", [lesson()], "key", "hash")
    assert repeated.outcome == kept


async def test_finish_purges_what_forgetting_left(deriver: Deriver, store: SessionStore) -> None:
    teacher = teacher_of(deriver, store)
    await taught(teacher, "s", lesson(), lesson("Hello", "Hi."))
    await store.forget(TENANT, "s", 1)
    (pointer,) = await store.pending_sessions()
    await rebuilder(deriver, store).purge(pointer)
    (version,) = await store.versions(TENANT, "s")
    assert version.record.item_ids == (2,)
    assert not (await store.pointer(TENANT, "s")).unpurged


async def test_a_lesson_that_cannot_be_taught_is_not_kept(
    deriver: Deriver, store: SessionStore
) -> None:
    teacher = teacher_of(deriver, store)
    for bad in (lesson("<|user|>"), lesson(completion="<|end|>"), lesson("parcel " * 300)):
        with pytest.raises(LessonError) as caught:
            await teacher.append(TENANT, "s", [lesson(), bad], None, "")
        assert caught.value.index == 1
    assert not (await store.pointer(TENANT, "s")).exists


async def test_a_full_session_takes_no_more(
    deriver: Deriver, store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fullness, "MAX_ITEMS", 2)
    teacher = teacher_of(deriver, store)
    both = [lesson(), lesson("Hello", "Hi.")]
    await teacher.append(TENANT, "s", both, "key", "hash")
    with pytest.raises(SessionFull, match="forget"):
        await teacher.append(TENANT, "s", [lesson("Bye", "Bye.")], "other", "hash")
    assert (await teacher.append(TENANT, "s", both, "key", "hash")).items == (1, 2)
    assert (await store.pointer(TENANT, "s")).items == 2


async def test_a_full_session_answers_what_it_took_before(
    deriver: Deriver, store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, first = teacher_of(deriver, store), [lesson()]
    appended = await teacher.append(TENANT, "s", first, "key", "hash")
    outcome = await teacher.teach(TENANT, "s", appended.items, key="key")
    await teacher.append(TENANT, "s", [lesson(completion="Here.")], None, "")
    await teacher.append(TENANT, "s", [lesson("Hello", "Hi."), lesson("Bye", "Bye.")], None, "")
    monkeypatch.setattr(fullness, "MAX_ITEMS", 2)
    again = await teacher.append(TENANT, "s", [*first, lesson("More?", "No.")], "key", "hash")
    assert (again.items, again.repeated, again.outcome) == ((1,), True, outcome)
    with pytest.raises(IdempotencyConflict):
        await teacher.append(TENANT, "s", [lesson("More?", "No.")], "key", "another hash")
    await _age(store, "key")
    with pytest.raises(SessionFull):
        await teacher.append(TENANT, "s", [lesson("More?", "No.")], "key", "hash")


async def _age(store: SessionStore, key: str) -> None:
    """Have a day go by for an idempotency record."""
    place = store._room.keys.session(TENANT, "s").idempotency
    record = json.loads(await store._room.connection.read("HGET", place, key))
    record["at"] -= 24 * 3600 * 1000
    await store._room.connection.write("HSET", place, key, json.dumps(record))


async def test_what_supersedes_an_item_finds_room_in_a_full_session(
    deriver: Deriver, store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fullness, "MAX_ITEMS", 2)
    teacher = teacher_of(deriver, store)
    rated = Lesson([{"role": "user", "content": "Hello"}], "Hi.", "rating", rating=1)
    await teacher.append(TENANT, "s", [lesson(), rated], None, "")
    await teacher.append(
        TENANT, "s", [lesson(completion="Here."), replace(rated, rating=-1)], None, ""
    )
    await teacher.append(TENANT, "s", [lesson("Hello", "Hi there.")], None, "")
    for more in (
        [replace(rated, turns=lesson().turns)],  # weaker than what is there
        [lesson("Bye", "Bye.")],
        [lesson(), lesson("Bye", "Bye.")],
    ):
        with pytest.raises(SessionFull):
            await teacher.append(TENANT, "s", more, None, "")
    live = await store.derivable(TENANT, "s")
    assert [item.payload["completion"] for item in live] == ["Here.", "Hi there."]


async def test_a_session_deleted_meanwhile(deriver: Deriver, store: SessionStore) -> None:
    teacher = teacher_of(deriver, store)
    appended = await teacher.append(TENANT, "s", [lesson()], "key", "hash")
    await store.delete(TENANT, "s")
    with pytest.raises(SessionNotFound):
        await teacher.teach(TENANT, "s", appended.items)
    assert not (await store.pointer(TENANT, "s")).exists
    # Made again: its items are others, whatever they are called.
    await teacher.append(TENANT, "s", [lesson("Hello", "Hi.")], "key", "another hash")
    with pytest.raises(SessionNotFound):
        await teacher.teach(
            TENANT, "s", appended.items, key="key", incarnation=appended.incarnation
        )
    assert await statuses(store, "s") == ["pending"]
    (pointer,) = await store.pending_sessions()
    assert await teacher.finish(pointer)
    with pytest.raises(SessionNotFound):
        await teacher.teach(
            TENANT, "s", appended.items, key="key", incarnation=appended.incarnation
        )


@pytest.mark.parametrize("again", [False, True])
async def test_a_session_deleted_while_its_items_are_looked_up(
    deriver: Deriver, store: SessionStore, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    teacher, read = teacher_of(deriver, store), store.item
    appended = await teacher.append(TENANT, "s", [lesson()], None, "")
    await teacher.teach(TENANT, "s", appended.items)

    async def too_late(tenant: str, session_id: str, number: int) -> Item:
        await store.delete(tenant, session_id)
        if again:
            await teacher.append(tenant, session_id, [lesson("Hello", "Hi.")], None, "")
        return await read(tenant, session_id, number)

    monkeypatch.setattr(store, "item", too_late)
    with pytest.raises(SessionNotFound):
        await teacher.teach(TENANT, "s", appended.items, incarnation=appended.incarnation)


async def test_the_record_says_what_a_version_came_from(
    deriver: Deriver, store: SessionStore, artifact: Artifact
) -> None:
    await taught(teacher_of(deriver, store), "s", lesson())
    (version,) = await store.versions(TENANT, "s")
    record = version.record
    assert isinstance(record, VersionRecord)
    assert (record.start, record.item_ids, record.steps) == ("session_init", (1,), 12)
    assert (record.base_fingerprint, record.rule_hash) == (artifact.fingerprint, artifact.rule_hash)
    assert len(record.guard["step_losses"]) == 12
    (item,) = await store.items(TENANT, "s")
    assert item.payload["activation_index"] > 3
