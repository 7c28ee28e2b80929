"""The feedback log: append, idempotency, superseding, refusing, forgetting."""

import asyncio
from collections.abc import Callable

import pytest

from server.sessions import (
    IdempotencyConflict,
    InvalidName,
    Item,
    ItemNotFound,
    Kind,
    NewItem,
    NotStorable,
    SessionNotFound,
    SessionStore,
    VersionRecord,
    prompt_key,
)

pytestmark = pytest.mark.anyio


def about(prompt: str, kind: Kind = "demonstration", **payload: object) -> NewItem:
    messages = [{"role": "user", "content": prompt}]
    return NewItem(kind, {"messages": messages, **payload}, prompt_key(messages))


def record(*item_ids: int) -> VersionRecord:
    return VersionRecord("session_init", item_ids, "rule", "base")


async def statuses(store: SessionStore, session_id: str = "s") -> list[str]:
    return [item.status for item in await store.items("t", session_id)]


def ids(items: tuple[Item, ...]) -> list[int]:
    return [item.id for item in items]


async def test_a_session_that_is_not_there_is_untaught(
    store: SessionStore, keys_of: Callable[[SessionStore], set[str]]
) -> None:
    before = keys_of(store)
    pointer = await store.pointer("t", "s")
    assert (pointer.exists, pointer.version, pointer.base_fingerprint) == (False, 0, "")
    assert await store.derivable("t", "s") == ()
    assert keys_of(store) == before  # asking makes nothing
    with pytest.raises(SessionNotFound):
        await store.items("t", "s")
    with pytest.raises(ItemNotFound, match="no feedback item 1"):
        await store.item("t", "s", 1)


async def test_append_makes_the_session_and_numbers_items(store: SessionStore) -> None:
    first = await store.append("t", "s", [about("a"), about("b")])
    second = await store.append("t", "s", [about("c")])
    assert (first.item_ids, second.item_ids) == ((1, 2), (3,))
    assert not first.repeated
    pointer = await store.pointer("t", "s")
    assert (pointer.exists, pointer.version, pointer.items, pointer.pending) == (True, 0, 3, 3)
    assert pointer.unfinished
    assert pointer.created_at <= pointer.updated_at
    assert ids(await store.derivable("t", "s")) == [1, 2, 3]
    assert await statuses(store) == ["pending"] * 3


async def test_payloads_come_back_exactly(store: SessionStore) -> None:
    # Each of these would be changed by a script that parsed it.
    payload = {
        "empty": [],
        "nothing": {},
        "long": 2**60 + 1,
        "fine": 0.1 + 0.2,
        "null": None,
        "text": '⛵ \u0000 "quoted" / \\ \' {tag} \ud800',
        "tokens": list(range(300)),
    }
    await store.append("t", "s", [NewItem("preference", payload)])
    item = await store.item("t", "s", 1)
    assert item.payload == payload
    assert (item.kind, item.prompt_key, item.idempotency_key) == ("preference", "", None)


async def test_what_json_cannot_hold_is_refused_and_changes_nothing(store: SessionStore) -> None:
    for payload in ({"loss": float("nan")}, {"object": object()}):
        with pytest.raises(NotStorable, match="JSON"):
            await store.append("t", "s", [about("a"), NewItem("rating", payload)])
    assert not (await store.pointer("t", "s")).exists


async def test_creating_is_append_without_items(store: SessionStore) -> None:
    created = await store.create("t", "s")
    assert (created.exists, created.items, created.unfinished) == (True, 0, False)
    await store.append("t", "s", [about("a")])
    again = await store.create("t", "s")
    assert again.incarnation == created.incarnation
    assert again.items == 1


async def test_repeated_key_returns_the_earlier_record(store: SessionStore) -> None:
    first = await store.append("t", "s", [about("a"), about("b")], "key", "hash")
    in_flight = await store.append("t", "s", [about("a"), about("b")], "key", "hash")
    assert in_flight.item_ids == first.item_ids
    assert in_flight.repeated
    assert in_flight.answer is None

    pointer = await store.pointer("t", "s")
    answer = {"accepted": True, "examples": [], "loss_after": 0.25}
    await store.promote(pointer, b"bytes", record(1, 2), idempotency_key="key", answer=answer)
    settled = await store.append("t", "s", [about("a"), about("b")], "key", "hash")
    assert settled.answer == answer | {"adapter_version": 1}
    assert (await store.pointer("t", "s")).items == 2
    assert (await store.item("t", "s", 1)).idempotency_key == "key"


async def test_key_with_another_body_is_a_conflict(
    store: SessionStore, dump_of: Callable[[SessionStore], dict[str, object]]
) -> None:
    await store.append("t", "s", [about("a")], "key", "hash")
    keys = store._room.keys
    moving = (keys.pending, keys.updated("t"))  # their times move with every attempt
    before = {key: value for key, value in dump_of(store).items() if key not in moving}
    with pytest.raises(IdempotencyConflict, match="key was used for another request"):
        await store.append("t", "s", [about("b")], "key", "other hash")
    assert {key: value for key, value in dump_of(store).items() if key not in moving} == before
    # Keys belong to a session, and sessions to a tenant.
    assert (await store.append("t", "s2", [about("b")], "key", "other hash")).item_ids == (1,)
    assert (await store.append("t2", "s", [about("b")], "key", "other hash")).item_ids == (1,)


async def test_one_of_many_simultaneous_repeats_appends(store: SessionStore) -> None:
    results = await asyncio.gather(
        *(store.append("t", "s", [about("a")], "key", "hash") for _ in range(20))
    )
    assert {result.item_ids for result in results} == {(1,)}
    assert sum(not result.repeated for result in results) == 1
    assert (await store.pointer("t", "s")).items == 1


async def test_settle_answers_once(store: SessionStore) -> None:
    await store.append("t", "s", [about("a")], "key", "hash")
    first = {"accepted": True, "adapter_version": 3}
    assert await store.settle("t", "s", "key", 3, {"accepted": True}) == first
    assert await store.settle("t", "s", "key", 4, {"accepted": False}) == first
    assert await store.settle("t", "s", "unknown key", 4, {"accepted": False}) is None
    settled = await store.append("t", "s", [about("a")], "key", "hash")
    assert settled.answer == {"accepted": True, "adapter_version": 3}
    with pytest.raises(SessionNotFound):
        await store.settle("t", "none", "key", 1, {})


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("demonstration", "demonstration"), ["superseded", "pending"]),
        (("demonstration", "correction"), ["superseded", "pending"]),
        (("correction", "demonstration"), ["superseded", "pending"]),
        (("rating", "preference"), ["superseded", "pending"]),
        (("rating", "rating"), ["superseded", "pending"]),
        (("preference", "rating"), ["pending", "pending"]),
        (("correction", "rating"), ["pending", "pending"]),
        (("demonstration", "preference"), ["pending", "pending"]),
        (("rating", "correction", "rating"), ["superseded", "pending", "pending"]),
        (("rating", "rating", "correction"), ["superseded", "superseded", "pending"]),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_later_and_equally_strong_supersedes(
    store: SessionStore, kinds: tuple[Kind, ...], expected: list[str], at_once: bool
) -> None:
    items = [about("same", kind) for kind in kinds]
    for batch in [items] if at_once else [[item] for item in items]:
        await store.append("t", "s", batch)
    await store.append("t", "s", [about("other"), NewItem("rating", {}), NewItem("rating", {})])
    assert await statuses(store) == [*expected, "pending", "pending", "pending"]


async def test_superseded_items_name_their_successor(store: SessionStore) -> None:
    for answer in ("one", "two", "three"):
        await store.append("t", "s", [about("q", completion=answer)])
    first, second, third = await store.items("t", "s")
    assert (first.superseded_by, second.superseded_by, third.superseded_by) == (3, 3, None)
    assert first.reason == "superseded by item 3"
    assert ids(await store.derivable("t", "s")) == [3]
    pointer = await store.pointer("t", "s")
    assert (pointer.items, pointer.pending) == (3, 1)


async def test_refusing_restores_what_was_superseded(store: SessionStore) -> None:
    await store.append("t", "s", [about("q")])
    version = await store.promote(await store.pointer("t", "s"), b"1", record(1))
    await store.append("t", "s", [about("q"), about("p")], "key", "hash")
    assert await statuses(store) == ["superseded", "pending", "pending"]

    answer = {"accepted": False, "reason": "norm"}
    assert await store.refuse("t", "s", (2, 3, 99), "norm", "key", answer) == (2, 3)
    assert await statuses(store) == ["applied", "refused", "refused"]
    assert (await store.item("t", "s", 2)).reason == "norm"
    pointer = await store.pointer("t", "s")
    assert (pointer.version, pointer.applied, pointer.pending) == (version, 1, 0)
    settled = await store.append("t", "s", [about("q"), about("p")], "key", "hash")
    assert settled.answer == answer | {"adapter_version": version}
    # Only pending items can be refused.
    assert await store.refuse("t", "s", (1, 2), "again") == ()
    assert await statuses(store) == ["applied", "refused", "refused"]


async def test_refuse_leaves_a_session_made_anew_alone(store: SessionStore) -> None:
    await store.append("t", "s", [about("q")])
    old = await store.pointer("t", "s")
    await store.delete("t", "s")
    await store.append("t", "s", [about("q")])
    with pytest.raises(SessionNotFound):
        await store.refuse("t", "s", (1,), "norm", incarnation=old.incarnation)
    assert await statuses(store) == ["pending"]


async def test_forgetting_erases_and_restores(
    store: SessionStore, dump_of: Callable[[SessionStore], dict[str, object]]
) -> None:
    await store.append("t", "s", [about("q", completion="old")])
    await store.append("t", "s", [about("q", completion="a secret")])
    result = await store.forget("t", "s", 2)
    assert (result.restored, result.versions, result.active) == ((1,), (), False)
    assert result.derive_again  # the restored item waits
    assert await statuses(store) == ["pending", "forgotten"]
    forgotten = await store.item("t", "s", 2)
    assert (forgotten.payload, forgotten.prompt_key) == ({}, "")
    assert not any(b"a secret" in value for value in dump_of(store).values())  # type: ignore[operator]
    # Forgetting twice is forgetting once.
    assert (await store.forget("t", "s", 2)).restored == ()
    with pytest.raises(ItemNotFound):
        await store.forget("t", "s", 3)
    with pytest.raises(SessionNotFound):
        await store.forget("t", "none", 1)


async def test_forgetting_a_link_of_a_chain(store: SessionStore) -> None:
    for _ in range(3):
        await store.append("t", "s", [about("q")])
    await store.forget("t", "s", 2)
    assert await statuses(store) == ["superseded", "forgotten", "pending"]
    await store.forget("t", "s", 3)
    assert await statuses(store) == ["pending", "forgotten", "forgotten"]
    await store.forget("t", "s", 1)
    assert await store.derivable("t", "s") == ()


async def test_items_come_in_pages(store: SessionStore) -> None:
    await store.append("t", "s", [about(str(n)) for n in range(25)])
    assert ids(await store.items("t", "s", offset=10, limit=5)) == [11, 12, 13, 14, 15]
    assert ids(await store.items("t", "s", offset=20, limit=10)) == [21, 22, 23, 24, 25]
    assert await store.items("t", "s", offset=25) == ()


async def test_sessions_do_not_see_each_other(
    store: SessionStore, dump_of: Callable[[SessionStore], dict[str, object]]
) -> None:
    """Names that would meet in a careless key: with slashes, braces, colons, percents."""
    names = [("a/b", "c"), ("a", "b/c"), ("a", "b"), ("{a}", "b"), ("a", "b}:meta"), ("%61", "b")]
    for number, (tenant, session_id) in enumerate(names):
        await store.append(tenant, session_id, [about("q")] * (number + 1))
    for number, (tenant, session_id) in enumerate(names):
        assert (await store.pointer(tenant, session_id)).items == number + 1

    def of_others() -> dict[str, object]:
        return {
            key: value for key, value in dump_of(store).items() if "/" in key.replace("{a/b}", "")
        }

    others = of_others()
    await store.append("a", "b", [about("z")])
    await store.promote(await store.pointer("a", "b"), b"x", record(4))
    await store.forget("a", "b", 4)
    assert of_others() == others


@pytest.mark.parametrize(("tenant", "session_id"), [("", "s"), ("t", ""), ("t", "\ud800")])
async def test_names_that_cannot_be_keys(store: SessionStore, tenant: str, session_id: str) -> None:
    with pytest.raises(InvalidName):
        await store.pointer(tenant, session_id)
    with pytest.raises(InvalidName):
        await store.append(tenant, session_id, [about("q")])
