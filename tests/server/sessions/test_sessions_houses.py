"""Houses in the store: read beside sessions, never listed, and what they forget swept out."""

from dataclasses import replace

import pytest
from test_sessions_versions import about, record

from server.sessions import HOUSE, SessionExists, SessionStore

pytestmark = pytest.mark.anyio


async def promote(store: SessionStore, session_id: str, house: str = "", *items: int) -> int:
    """Teach a session one item, derived from a house that contains ``items``."""
    await store.append("t", session_id, [about(f"of {session_id}")])
    read = await store.derivation("t", session_id)
    made = replace(
        record(*(item.id for item in read.items)),
        start="house" if house else "session_init",
        house=house,
        house_items=items,
    )
    return await store.promote(read.pointer, b"bytes", made)


async def forget(store: SessionStore, item: int) -> None:
    await store.expect_sweep("t")
    await store.forget("t", HOUSE, item)


async def numbers(store: SessionStore, session_id: str) -> list[int]:
    return [version.number for version in await store.versions("t", session_id)]


async def test_a_session_is_read_with_its_house(store: SessionStore) -> None:
    own, house = await store.standing("t", "s")
    assert (own.exists, house.exists, house.session_id, house.name) == (False, False, HOUSE, "")
    await promote(store, HOUSE)
    own, house = await store.standing("t", "s")
    assert house.name == f"{house.incarnation}.1"
    await promote(store, "s", house.name, 1)
    own, _ = await store.standing("t", "s")
    assert own.house == house.name
    assert (await store.version_record("t", "s", 1)).record.house_items == (1,)
    _, other = await store.standing("another", "s")
    assert not other.exists


async def test_rolling_back_names_the_house_of_that_version(store: SessionStore) -> None:
    await promote(store, "s", "a.1", 1)
    await promote(store, "s", "a.2", 1, 2)
    assert (await store.rollback("t", "s", 1)).house == "a.1"
    assert (await store.reset("t", "s")).house == ""


async def test_houses_are_no_sessions_and_do_not_expire(store: SessionStore) -> None:
    await promote(store, HOUSE)
    await promote(store, "s")
    assert [one.session_id for one in (await store.sessions()).sessions] == ["s"]
    assert [one.session_id for one in (await store.sessions(sort="session_id")).sessions] == ["s"]
    assert await store.expire(-1) == 1
    assert (await store.pointer("t", HOUSE)).exists


async def test_what_a_house_forgets_is_in_no_session_any_more(store: SessionStore) -> None:
    await promote(store, HOUSE)
    first = (await store.pointer("t", HOUSE)).name
    await promote(store, HOUSE)
    both = (await store.pointer("t", HOUSE)).name
    await promote(store, "s", first, 1)
    await promote(store, "s", both, 1, 2)
    await promote(store, "kept", first, 1)
    await promote(store, "alone")
    await forget(store, 2)
    assert await store.unswept() == ("t",)
    assert await store.sweep("t") == 1
    assert await store.unswept() == ()
    # The one in force stays until its successor comes; nothing else of it is left.
    assert (await store.pointer("t", "s")).unpurged
    assert "s" in {one.session_id for one in await store.pending_sessions()}
    assert await numbers(store, "s") == [1, 2]
    await promote(store, "s")
    assert not (await store.pointer("t", "s")).unpurged
    assert await numbers(store, "s") == [1, 3]
    for name in ("kept", "alone"):
        assert await numbers(store, name) == [1]
        assert not (await store.pointer("t", name)).unpurged
    await forget(store, 1)
    assert await store.sweep("t") == 2
    assert await numbers(store, "s") == [3]


async def test_a_deleted_house_is_in_no_session_any_more(store: SessionStore) -> None:
    await promote(store, HOUSE)
    name = (await store.pointer("t", HOUSE)).name
    await promote(store, "s", name, 1)
    await promote(store, "s")
    await store.delete("t", HOUSE)
    await promote(store, HOUSE)  # another one, whose first item is another one too
    assert await store.sweep("t") == 1
    assert await numbers(store, "s") == [2]
    assert not (await store.pointer("t", "s")).unpurged


async def test_what_was_derived_before_and_promoted_after_is_found(store: SessionStore) -> None:
    await promote(store, HOUSE)
    house = await store.pointer("t", HOUSE)
    await forget(store, 1)
    await store.sweep("t")  # comes by too early
    await promote(store, "s", house.name, 1)
    await store.taint_since("t", "s", await store.pointer("t", HOUSE))
    assert not (await store.pointer("t", "s")).unpurged, "nothing was forgotten since"
    await store.taint_since("t", "s", house)
    assert (await store.pointer("t", "s")).unpurged


async def test_a_name_that_came_meanwhile_outlives_a_sweep(store: SessionStore) -> None:
    await store.expect_sweep("t")
    marked = store._room.connection.ahead_s
    await store.sweep("t")
    assert await store.unswept() == ()
    store._room.connection.ahead_s = marked + 60
    await store.expect_sweep("t")
    assert await store.unswept(idle_s=5.0) == ()
    assert await store.unswept(idle_s=-70.0) == ("t",)


async def test_without_a_house_for_good(store: SessionStore) -> None:
    made = await store.create("t", "s", alone=True)
    assert made.alone
    assert not (await store.create("t", "other")).alone
    with pytest.raises(SessionExists):
        await store.create("t", "other", alone=True)
    assert (await store.create("t", "s")).alone


async def test_a_pin_names_the_house_until_it_is_taken_off(store: SessionStore) -> None:
    await promote(store, "s")
    assert (await store.pin("t", "s", True, house="a.3")).pinned_house == "a.3"
    assert (await store.pin("t", "s", True, house="a.4")).pinned_house == "a.3"
    assert (await store.pin("t", "s", False)).pinned_house == ""
