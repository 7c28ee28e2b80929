"""Versions: promotion, conflicts, history, rollback, and forgetting what they contain."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from redis import Redis

from server.sessions import (
    NewItem,
    NotStorable,
    SessionNotFound,
    SessionPinned,
    SessionStore,
    SnapshotLost,
    VersionConflict,
    VersionNotFound,
    VersionRecord,
)

pytestmark = pytest.mark.anyio


def about(prompt: str) -> NewItem:
    return NewItem("demonstration", {"prompt": prompt}, prompt)


def record(*item_ids: int, base: str = "base") -> VersionRecord:
    return VersionRecord(
        start="session_init",
        item_ids=item_ids,
        rule_hash="rule",
        base_fingerprint=base,
        guard={"verdict": "accept", "scale": 0.5, "tried": []},
        steps=5,
        loss_before=2.5,
        loss_after=0.1,
        update_norm=1e-3,
    )


async def derive(store: SessionStore, session_id: str = "s") -> int:
    """Promote over all that derives, as an adapt job does."""
    read = await store.derivation("t", session_id)
    item_ids = [item.id for item in read.items]
    return await store.promote(read.pointer, repr(item_ids).encode(), record(*item_ids))


async def teach(store: SessionStore, *prompts: str, session_id: str = "s") -> int:
    await store.append("t", session_id, [about(prompt) for prompt in prompts])
    return await derive(store, session_id)


async def statuses(store: SessionStore) -> list[str]:
    return [item.status for item in await store.items("t", "s")]


async def numbers(store: SessionStore) -> list[int]:
    return [version.number for version in await store.versions("t", "s")]


def snapshot_keys(keys: set[str]) -> set[str]:
    return {key for key in keys if ":snapshot:" in key}


async def test_promote_makes_the_next_version(store: SessionStore) -> None:
    await store.append("t", "s", [about("a"), about("b")])
    before = await store.pointer("t", "s")
    data = bytes(range(256)) * 100
    assert await store.promote(before, data, record(1, 2)) == 1
    pointer = await store.pointer("t", "s")
    assert (pointer.version, pointer.base_fingerprint) == (1, "base")
    assert (pointer.pending, pointer.applied, pointer.unfinished) == (0, 2, False)
    assert await store.snapshot("t", "s", 1) == data
    version = await store.version_record("t", "s", 1)
    assert version.record == record(1, 2)
    assert (version.number, version.snapshot_bytes) == (1, len(data))
    assert await store.versions("t", "s") == (version,)
    assert [item.version for item in await store.items("t", "s")] == [1, 1]
    # The second version applies the third item; the others keep the version they came with.
    assert await teach(store, "c") == 2
    assert [item.version for item in await store.items("t", "s")] == [1, 1, 2]


async def test_promoted_bytes_do_not_expire(
    store: SessionStore, raw: Redis, keys_of: Callable[[SessionStore], set[str]]
) -> None:
    await teach(store, "a")
    (key,) = snapshot_keys(keys_of(store))
    assert raw.ttl(key) == -1


async def test_a_moved_pointer_conflicts_and_leaves_nothing(
    store: SessionStore, dump_of: Callable[[SessionStore], dict[str, object]]
) -> None:
    await store.append("t", "s", [about("a")], "key", "hash")
    stale = await store.pointer("t", "s")
    await derive(store)
    before = dump_of(store)
    with pytest.raises(VersionConflict, match="at version 1, not 0"):
        await store.promote(stale, b"late", record(1), idempotency_key="key", answer={"x": 1})
    after, moving = dump_of(store), store._room.keys.updated("t")  # its times move at every attempt
    assert {**after, moving: None} == {**before, moving: None}


async def test_of_racing_promotions_one_wins(
    store: SessionStore, keys_of: Callable[[SessionStore], set[str]]
) -> None:
    await store.append("t", "s", [about("a"), about("b")])
    pointer = await store.pointer("t", "s")
    results = await asyncio.gather(
        *(store.promote(pointer, b"%d" % n, record(1, 2)) for n in range(10)),
        return_exceptions=True,
    )
    winners = [n for n, result in enumerate(results) if result == 1]
    assert len(winners) == 1
    assert sum(isinstance(result, VersionConflict) for result in results) == 9
    assert await store.snapshot("t", "s", 1) == b"%d" % winners[0]
    assert len(snapshot_keys(keys_of(store))) == 1
    # Whoever lost derives again, over everything.
    assert await derive(store) == 2


async def test_a_candidate_over_a_forgotten_item_is_never_promoted(
    store: SessionStore, keys_of: Callable[[SessionStore], set[str]]
) -> None:
    await store.append("t", "s", [about("a"), about("b")])
    pointer = await store.pointer("t", "s")
    await store.forget("t", "s", 1)
    with pytest.raises(VersionConflict, match="item 1 of session 's' is forgotten now"):
        await store.promote(pointer, b"x", record(1, 2))
    assert await numbers(store) == []
    assert snapshot_keys(keys_of(store)) == set()
    with pytest.raises(VersionConflict, match="item 7 of session 's' is absent"):
        await store.promote(pointer, b"x", record(7))


async def test_a_superseded_item_makes_the_candidate_stale(store: SessionStore) -> None:
    await store.append("t", "s", [about("a")])
    pointer = await store.pointer("t", "s")
    await store.append("t", "s", [about("a")])
    with pytest.raises(VersionConflict, match="superseded"):
        await store.promote(pointer, b"x", record(1))


async def test_promote_does_not_revive_a_deleted_session(
    store: SessionStore, keys_of: Callable[[SessionStore], set[str]]
) -> None:
    await store.append("t", "s", [about("a")])
    pointer = await store.pointer("t", "s")
    await store.delete("t", "s")
    empty = keys_of(store)
    with pytest.raises(SessionNotFound):
        await store.promote(pointer, b"x", record(1))
    assert keys_of(store) == empty
    # Nor does it touch one that was made again under the same name, with the same item ids.
    await store.append("t", "s", [about("something else")])
    with pytest.raises(SessionNotFound):
        await store.promote(pointer, b"x", record(1))
    assert (await store.pointer("t", "s")).version == 0
    with pytest.raises(SessionNotFound):
        await store.promote(await store.pointer("t", "none"), b"x", record())


async def test_promote_can_refuse_items_too(store: SessionStore) -> None:
    await teach(store, "a")
    await store.append("t", "s", [about("b"), about("a")])
    pointer = await store.pointer("t", "s")
    assert await statuses(store) == ["superseded", "pending", "pending"]
    await store.promote(pointer, b"x", record(2), refused_ids=(3,), refused_reason="too long")
    # Item 1 is back, but this version does not contain it: it waits to be derived again.
    assert await statuses(store) == ["pending", "applied", "refused"]
    assert (await store.item("t", "s", 3)).reason == "too long"
    assert (await store.pointer("t", "s")).unfinished


async def test_records_that_json_cannot_hold(store: SessionStore) -> None:
    await store.append("t", "s", [about("a")])
    nan = VersionRecord("init", (1,), "rule", "base", loss_after=float("nan"))
    with pytest.raises(NotStorable):
        await store.promote(await store.pointer("t", "s"), b"x", nan)
    assert (await store.pointer("t", "s")).version == 0


async def test_a_pinned_session_takes_no_version_that_can_wait(
    store: SessionStore, keys_of: Callable[[SessionStore], set[str]]
) -> None:
    with pytest.raises(SessionNotFound):
        await store.pin("t", "s", True)
    await teach(store, "a")
    assert (await store.pin("t", "s", True)).pinned
    await store.append("t", "s", [about("b")])
    pointer = await store.pointer("t", "s")
    with pytest.raises(SessionPinned):
        await store.promote(pointer, b"x", record(1, 2), unless_pinned=True)
    assert len(snapshot_keys(keys_of(store))) == 1
    assert (await store.pointer("t", "s")) == pointer
    assert await derive(store) == 2, "what must be derived, is"
    assert not (await store.pin("t", "s", False)).pinned
    pointer = await store.pointer("t", "s")
    assert await store.promote(pointer, b"x", record(1, 2), unless_pinned=True) == 3


async def test_only_the_newest_versions_keep_their_bytes(
    redis_url: str, keys_of: Callable[[SessionStore], set[str]]
) -> None:
    opened = await SessionStore.open(
        redis_url, namespace="bytes", history_versions=4, history_snapshots=2
    )
    async with opened as store:
        for prompt in "abcde":
            await teach(store, prompt)
        sizes = [version.snapshot_bytes for version in await store.versions("t", "s")]
        assert await numbers(store) == [2, 3, 4, 5]
        assert [size > 0 for size in sizes] == [False, False, True, True]
        assert len(snapshot_keys(keys_of(store))) == 2
        with pytest.raises(SnapshotLost):
            await store.snapshot("t", "s", 2)
        # It can be gone back to all the same, and its record says what to derive it from.
        assert (await store.rollback("t", "s", 2)).version == 2
        pointer = await store.pointer("t", "s")
        known = await store.version_record("t", "s", 2)
        assert known.record == record(1, 2)
        await store.restore(pointer, 2, b"again")
        assert await store.snapshot("t", "s", 2) == b"again"
        assert await store.version_record("t", "s", 2) == replace(known, snapshot_bytes=5)
        await teach(store, "f")
        assert await store.snapshot("t", "s", 6)
        assert len(snapshot_keys(keys_of(store))) == 2, "the next version lets go of it again"
        with pytest.raises(VersionNotFound):
            await store.restore(pointer, 9, b"never made")
        await store.delete("t", "s")
        await teach(store, "a")
        with pytest.raises(SessionNotFound):
            await store.restore(pointer, 1, b"of the session before")
        assert await store.snapshot("t", "s", 1) != b"of the session before"


async def test_history_is_trimmed_but_numbers_are_never_reused(
    redis_url: str, keys_of: Callable[[SessionStore], set[str]]
) -> None:
    async with await SessionStore.open(redis_url, namespace="trim", history_versions=3) as store:
        for n in range(6):
            await teach(store, str(n))
        assert await numbers(store) == [4, 5, 6]
        assert len(snapshot_keys(keys_of(store))) == 3
        for gone in (3, 7, 0):
            with pytest.raises(VersionNotFound):
                await store.snapshot("t", "s", gone)
        await store.rollback("t", "s", 4)
        assert await teach(store, "new") == 7
        assert await numbers(store) == [5, 6, 7]
        await store.delete("t", "s")


async def test_rollback_applies_that_versions_items_and_no_others(store: SessionStore) -> None:
    await teach(store, "a", "b")  # 1, 2 in version 1
    await teach(store, "a")  # 3 supersedes 1, version 2
    await store.append("t", "s", [about("c")])  # 4, pending
    assert await statuses(store) == ["superseded", "applied", "applied", "pending"]

    pointer = await store.rollback("t", "s", 1)
    assert (pointer.version, pointer.applied, pointer.unfinished) == (1, 2, False)
    assert await statuses(store) == ["applied", "applied", "refused", "refused"]
    assert (await store.item("t", "s", 3)).reason == "rolled back"
    assert [item.id for item in await store.derivable("t", "s")] == [1, 2]

    # Kept versions can be rolled forward to.
    assert (await store.rollback("t", "s", 2)).version == 2
    assert await statuses(store) == ["superseded", "applied", "applied", "refused"]
    await store.rollback("t", "s", 0)
    assert await statuses(store) == ["refused"] * 4
    await store.rollback("t", "s", 2)
    assert await statuses(store) == ["superseded", "applied", "applied", "refused"]

    # A new version after going back has a new number.
    await store.rollback("t", "s", 1)
    assert await teach(store, "d") == 3
    assert await numbers(store) == [1, 2, 3]
    with pytest.raises(VersionNotFound):
        await store.rollback("t", "s", 9)
    with pytest.raises(SessionNotFound):
        await store.rollback("t", "none", 0)


async def test_rollback_keeps_older_chains_superseded(store: SessionStore) -> None:
    await teach(store, "a")  # item 1
    await teach(store, "a")  # item 2 supersedes 1, version 2
    await store.append("t", "s", [about("a"), about("a")])  # 3 and 4, of which 3 is superseded
    await store.rollback("t", "s", 2)
    assert await statuses(store) == ["superseded", "applied", "refused", "refused"]
    await store.rollback("t", "s", 0)
    assert await statuses(store) == ["refused"] * 4


async def test_reset_is_untaught_and_can_be_undone(store: SessionStore) -> None:
    await teach(store, "a")
    pointer = await store.reset("t", "s")
    assert (pointer.version, pointer.base_fingerprint, pointer.unfinished) == (0, "", False)
    assert await statuses(store) == ["refused"]
    assert (await store.item("t", "s", 1)).reason == "reset"
    assert (await store.rollback("t", "s", 1)).base_fingerprint == "base"
    assert await statuses(store) == ["applied"]


async def test_forgetting_deletes_the_versions_that_contain_it(
    store: SessionStore, keys_of: Callable[[SessionStore], set[str]]
) -> None:
    await teach(store, "a")
    await teach(store, "b")
    await teach(store, "c")
    result = await store.forget("t", "s", 2)
    assert (result.versions, result.active, result.derive_again) == ((2, 3), True, True)
    # The active version serves until its successor is there.
    pointer = await store.pointer("t", "s")
    assert (pointer.version, pointer.unpurged, pointer.unfinished) == (3, True, True)
    assert await numbers(store) == [1, 3]
    with pytest.raises(VersionNotFound, match="forgotten"):
        await store.rollback("t", "s", 3)
    # Forgetting again, for instance after a crash, says the same of what is left.
    again = await store.forget("t", "s", 2)
    assert (again.versions, again.active, again.derive_again) == ((3,), True, True)

    assert await derive(store) == 4
    assert await numbers(store) == [1, 4]
    assert not (await store.pointer("t", "s")).unfinished
    assert len(snapshot_keys(keys_of(store))) == 2
    assert await store.snapshot("t", "s", 4) == b"[1, 3]"


async def test_forgetting_what_only_old_versions_contain(store: SessionStore) -> None:
    await teach(store, "a")
    await teach(store, "a")  # supersedes: version 2 does not contain item 1
    result = await store.forget("t", "s", 1)
    assert (result.versions, result.active, result.derive_again) == ((1,), False, False)
    assert await numbers(store) == [2]
    assert not (await store.pointer("t", "s")).unfinished


async def test_forgetting_the_later_derives_the_earlier_again(store: SessionStore) -> None:
    await teach(store, "a")
    await teach(store, "a")
    result = await store.forget("t", "s", 2)
    assert (result.restored, result.versions, result.derive_again) == ((1,), (2,), True)
    assert await derive(store) == 3
    assert await store.snapshot("t", "s", 3) == b"[1]"
    assert await numbers(store) == [1, 3]


async def test_forgetting_everything_goes_to_version_0(store: SessionStore) -> None:
    await teach(store, "a")
    pointer = await store.pointer("t", "s")
    with pytest.raises(VersionConflict, match="derive from them"):
        await store.promote_untaught(pointer)
    await store.forget("t", "s", 1)
    await store.promote_untaught(await store.pointer("t", "s"))
    pointer = await store.pointer("t", "s")
    assert (pointer.version, pointer.base_fingerprint, pointer.unfinished) == (0, "", False)
    assert await numbers(store) == []
    assert await teach(store, "b") == 2


async def test_what_was_derived_over_in_vain_is_refused_alone(store: SessionStore) -> None:
    await teach(store, "a")
    await teach(store, "a", "b")
    await store.append("t", "s", [about("c")])
    read = await store.derivation("t", "s")
    with pytest.raises(VersionConflict, match="has 1 items to derive from"):
        await store.promote_untaught(read.pointer, refused_ids=[2])
    await store.promote_untaught(read.pointer, refused_ids=[2, 3], refused_reason="too far")
    assert await statuses(store) == ["refused", "refused", "refused", "pending"]
    items = await store.items("t", "s")
    assert [item.reason for item in items] == ["too far"] * 3 + [None]
    pointer = await store.pointer("t", "s")
    assert (pointer.version, pointer.applied, pointer.pending) == (0, 0, 1)
    (event, *_) = await store.events("t", "s")
    assert (event.type, event.fields["refused"], event.fields["reason"]) == (
        "promote",
        "2,3",
        "too far",
    )
    with pytest.raises(VersionConflict, match="at version 0, not 2"):
        await store.promote_untaught(read.pointer, refused_ids=[4])
    # As after a reset, a kept version can be gone forward to.
    assert (await store.rollback("t", "s", 2)).applied == 2
    assert await statuses(store) == ["superseded", "applied", "applied", "refused"]


async def test_going_back_from_a_tainted_version_deletes_it(store: SessionStore) -> None:
    await teach(store, "a")
    await teach(store, "b")
    await store.forget("t", "s", 2)
    pointer = await store.rollback("t", "s", 1)
    assert (pointer.version, pointer.unpurged) == (1, False)
    assert await numbers(store) == [1]


async def test_lost_bytes_are_told_from_no_version(
    store: SessionStore, raw: Redis, keys_of: Callable[[SessionStore], set[str]]
) -> None:
    await teach(store, "a")
    raw.delete(*snapshot_keys(keys_of(store)))
    with pytest.raises(SnapshotLost, match="derive it again"):
        await store.snapshot("t", "s", 1)
    with pytest.raises(VersionNotFound):
        await store.snapshot("t", "s", 2)


async def test_a_new_base_is_a_new_version(store: SessionStore) -> None:
    await teach(store, "a")
    read = await store.derivation("t", "s")
    await store.promote(read.pointer, b"y", record(1, base="new base"))
    pointer = await store.pointer("t", "s")
    assert (pointer.version, pointer.base_fingerprint, pointer.applied) == (2, "new base", 1)
    assert (await store.rollback("t", "s", 1)).base_fingerprint == "base"


async def test_an_import_is_a_version_without_items(store: SessionStore) -> None:
    pointer = await store.create("t", "s")
    imported = VersionRecord("import", (), "", "base")
    assert await store.promote(pointer, b"peft", imported) == 1
    assert (await store.version_record("t", "s", 1)).record == imported
    assert (await store.rollback("t", "s", 0)).version == 0
