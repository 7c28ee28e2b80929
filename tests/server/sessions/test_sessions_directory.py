"""Sessions by page, deletion, unfinished work, completions, the event log."""

import asyncio
from collections.abc import Callable, Sequence

import pytest
from redis import Redis

from server.sessions import (
    HOUSE,
    CompletionNotFound,
    NewItem,
    NotStorable,
    SessionExists,
    SessionStore,
    StoreCorrupt,
    StoreUnavailable,
    VersionRecord,
    timeline,
)
from server.sessions.connection import Connection
from server.sessions.link import Argument, Command

pytestmark = pytest.mark.anyio


async def teach(store: SessionStore, tenant: str, session_id: str, versions: int = 1) -> None:
    for n in range(versions):
        await store.append(tenant, session_id, [NewItem("demonstration", {"n": n}, str(n))])
        read = await store.derivation(tenant, session_id)
        items = tuple(item.id for item in read.items)
        await store.promote(read.pointer, b"x", VersionRecord("init", items, "rule", "base"))


async def names(store: SessionStore, tenant: str | None = None, **how: object) -> list[str]:
    page = await store.sessions(tenant, **how)  # type: ignore[arg-type]
    return [pointer.session_id for pointer in page.sessions]


async def a_moment() -> None:
    """No two times in one millisecond, which is as fine as they are kept."""
    await asyncio.sleep(0.002)


async def test_pages_filters_and_sorts(store: SessionStore) -> None:
    await store.append("t", "b", [NewItem("rating", {})])
    await a_moment()
    await teach(store, "t", "c", versions=2)
    await a_moment()
    await store.append("t", "a", [NewItem("rating", {})] * 3)
    await a_moment()
    await store.create("other", "d")

    assert await names(store, "t", sort="session_id", descending=False) == ["a", "b", "c"]
    assert await names(store, "t", sort="items") == ["a", "c", "b"]
    assert await names(store, "t", sort="version") == ["c", "a", "b"]
    assert await names(store, "t", sort="created_at", descending=False) == ["b", "c", "a"]
    assert await names(store, "t") == ["a", "c", "b"]
    await store.append("t", "b", [NewItem("rating", {})])
    assert await names(store, "t") == ["b", "a", "c"]

    assert await names(store, "t", taught=True) == ["c"]
    assert await names(store, "t", taught=False, sort="session_id") == ["b", "a"]
    assert await names(store, "t", contains="c") == ["c"]
    assert await names(store, "nobody") == []
    everybody = await store.sessions(None, sort="session_id", descending=False)
    assert [(p.tenant, p.session_id) for p in everybody.sessions] == [
        ("t", "a"),
        ("t", "b"),
        ("t", "c"),
        ("other", "d"),
    ]

    page = await store.sessions(None, offset=1, limit=2, sort="session_id", descending=False)
    assert (page.total, [p.session_id for p in page.sessions]) == (4, ["b", "c"])
    page = await store.sessions(None, offset=3, limit=2, sort="items")
    assert (page.total, [p.session_id for p in page.sessions]) == (4, ["d"])
    assert page.sessions[0] == await store.pointer("other", "d")


async def test_a_page_of_many(store: SessionStore) -> None:
    await asyncio.gather(*(store.create("t", f"s{n:04}") for n in range(250)))
    page = await store.sessions("t", offset=240, limit=50, sort="session_id", descending=False)
    assert page.total == 250
    assert [p.session_id for p in page.sessions] == [f"s{n:04}" for n in range(240, 250)]
    assert (await store.sessions("t", limit=1)).total == 250


async def test_delete_leaves_nothing_behind(
    store: SessionStore, keys_of: Callable[[SessionStore], set[str]]
) -> None:
    empty = keys_of(store)
    await teach(store, "t", "s", versions=3)
    await store.append("t", "s", [NewItem("rating", {})], "key", "hash")
    await store.save_completion("t", "s", "c1", {"text": "x"})
    await store.save_completion("t", "s", "c2", {"text": "y"})
    await store.forget("t", "s", 2)
    assert len(keys_of(store)) > 10

    assert await store.delete("t", "s") is True
    assert keys_of(store) == empty
    assert await store.delete("t", "s") is False
    assert await names(store) == []
    assert not (await store.pointer("t", "s")).exists

    # A completion alone makes no session, and goes with it all the same.
    await store.save_completion("t", "s", "c3", {"text": "z"})
    assert await store.delete("t", "s") is False
    assert keys_of(store) == empty


@pytest.mark.parametrize("again", [False, True])
async def test_no_completion_is_kept_for_a_session_that_is_gone(
    store: SessionStore, dump_of: Callable[[SessionStore], dict[str, object]], again: bool
) -> None:
    """An answer that was under way comes after the deletion, and maybe to the next of that name."""
    known = (await store.create("t", "s")).incarnation
    assert await store.save_completion("t", "s", "c1", {"text": "x"}, incarnation=known)
    await store.delete("t", "s")
    if again:
        await store.create("t", "s")
    before = dump_of(store)
    assert not await store.save_completion("t", "s", "c2", {"text": "y"}, incarnation=known)
    assert dump_of(store) == before
    for completion_id in ("c1", "c2"):
        with pytest.raises(CompletionNotFound):
            await store.completion("t", completion_id)


async def test_deleting_one_session_leaves_the_others(store: SessionStore) -> None:
    for session_id in ("a", "b"):
        await teach(store, "t", session_id)
        await store.save_completion("t", session_id, f"c-{session_id}", {})
    before = await store.pointer("t", "b")
    await store.delete("t", "a")
    assert await store.pointer("t", "b") == before
    assert await store.snapshot("t", "b", 1) == b"x"
    assert (await store.completion("t", "c-b")).session_id == "b"
    assert await names(store, "t") == ["b"]


async def test_a_session_made_again_counts_anew_under_another_incarnation(
    store: SessionStore,
) -> None:
    await teach(store, "t", "s")
    old = await store.pointer("t", "s")
    await store.delete("t", "s")
    await teach(store, "t", "s")
    new = await store.pointer("t", "s")
    assert (old.version, new.version) == (1, 1)
    assert old.incarnation != new.incarnation


async def test_deleting_and_teaching_at_once_keeps_the_index_whole(store: SessionStore) -> None:
    async def churn(n: int) -> None:
        for _ in range(5):
            await store.append("t", "s", [NewItem("rating", {})])
            if n % 2:
                await store.delete("t", "s")

    await asyncio.gather(*(churn(n) for n in range(8)))
    exists = (await store.pointer("t", "s")).exists
    assert await names(store) == (["s"] if exists else [])
    await store.append("t", "s", [NewItem("rating", {})])
    assert await names(store) == ["s"]


async def test_unfinished_work_is_found(store: SessionStore, raw: Redis) -> None:
    await teach(store, "t", "done")
    await store.create("t", "empty")
    await store.append("t", "half", [NewItem("demonstration", {})])
    await teach(store, "t", "tainted", versions=2)
    await store.forget("t", "tainted", 1)
    await store.append("t", "deleted", [NewItem("demonstration", {})])
    await store.delete("t", "deleted")

    found = {pointer.session_id for pointer in await store.pending_sessions()}
    assert found == {"half", "tainted"}
    assert await store.pending_sessions(idle_s=3600) == ()
    await store.refuse("t", "half", (1,), "no")
    read = await store.derivation("t", "tainted")
    await store.promote(read.pointer, b"x", VersionRecord("init", (2,), "rule", "base"))
    assert await store.pending_sessions() == ()

    # Entries that nothing stands behind go once no write can be under way any more.
    index = store._room.keys.pending
    assert raw.zcard(index) == 4
    raw.zadd(index, {"t/done": 0, "t/half": 0})
    await store.pending_sessions()
    assert sorted(raw.zrange(index, 0, -1)) == [b"t/empty", b"t/tainted"]


async def test_completions_live_for_a_while(store: SessionStore, raw: Redis) -> None:
    payload = {"text": "hello", "token_ids": [], "adapter_version": 3}
    await store.save_completion("t", "s", "cmpl-1", payload, lifetime_s=7200)
    found = await store.completion("t", "cmpl-1")
    assert (found.completion_id, found.session_id, found.payload) == ("cmpl-1", "s", payload)
    with pytest.raises(CompletionNotFound, match="demonstration instead"):
        await store.completion("another tenant", "cmpl-1")
    with pytest.raises(NotStorable):
        await store.save_completion("t", "s", "cmpl-2", {"x": {1}})

    key = store._room.keys.completion("t", "cmpl-1")
    index = store._room.keys.session("t", "s").completions
    assert 0 < raw.ttl(key) <= 7200
    await store.save_completion("t", "s", "cmpl-2", payload, lifetime_s=3600)
    assert 3600 < raw.ttl(index) <= 7200  # as long as the longest of them
    raw.delete(key)
    with pytest.raises(CompletionNotFound):
        await store.completion("t", "cmpl-1")


async def test_the_log_says_what_happened(store: SessionStore) -> None:
    assert await store.events("t", "s") == ()
    await store.append("t", "s", [NewItem("demonstration", {}, "p"), NewItem("rating", {}, "q")])
    read = await store.derivation("t", "s")
    await store.promote(
        read.pointer, b"x", VersionRecord("init", (1,), "rule", "base"), refused_ids=(2,)
    )
    await store.append("t", "s", [NewItem("rating", {}, "r")])
    await store.refuse("t", "s", (3,), "the norm is too large")
    await store.forget("t", "s", 3)
    await store.rollback("t", "s", 0)
    await store.rollback("t", "s", 1)
    await store.reset("t", "s")
    events = await store.events("t", "s")
    assert [(event.type, dict(event.fields)) for event in reversed(events)] == [
        ("create", {}),
        ("feedback", {"first": "1", "last": "2"}),
        ("promote", {"version": "1", "from": "0", "items": "1", "refused": "2"}),
        ("feedback", {"first": "3", "last": "3"}),
        ("refuse", {"version": "1", "items": "3", "reason": "the norm is too large"}),
        ("forget", {"items": "3", "restored": ""}),
        ("rollback", {"version": "0", "from": "1", "refused": "1"}),
        ("rollback", {"version": "1", "from": "0", "refused": ""}),
        ("reset", {"version": "0", "from": "1", "refused": "1"}),
    ]
    assert [event.at for event in events] == sorted((e.at for e in events), reverse=True)
    assert await store.events("t", "s", limit=2) == events[:2]


async def test_unused_sessions_expire_with_all_they_left(
    store: SessionStore,
    age: Callable[[SessionStore, str, str, float], None],
    keys_of: Callable[[SessionStore], set[str]],
) -> None:
    await store.append("t", "old", [NewItem("demonstration", {})])
    await store.save_completion("t", "old", "c-old", {})
    await store.append("t", "asked", [NewItem("demonstration", {})])
    await store.append("u", "taught", [NewItem("demonstration", {})])
    for tenant, session in (("t", "old"), ("t", "asked"), ("u", "taught")):
        age(store, tenant, session, 7200)
    await store.save_completion("t", "asked", "c", {})
    await store.append("u", "taught", [NewItem("demonstration", {})])
    assert await store.expire(10_000) == 0
    assert await store.expire(3600) == 1
    page = await store.sessions()
    assert {session.session_id for session in page.sessions} == {"asked", "taught"}
    assert not [key for key in keys_of(store) if "old" in key]
    assert (await store.pointer("t", "asked")).used_at > (
        await store.pointer("t", "asked")
    ).updated_at


async def test_only_a_new_session_will_do(store: SessionStore) -> None:
    made = await store.create("t", "s", only_new=True)
    with pytest.raises(SessionExists, match="take another"):
        await store.create("t", "s", only_new=True)
    with pytest.raises(SessionExists):
        await store.append("t", "s", [NewItem("demonstration", {})], only_new=True)
    assert await store.pointer("t", "s") == made
    assert await store.create("t", "s") == made


@pytest.fixture
def asked(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys that are asked for in no particular order, as pointers are."""
    keys: list[str] = []
    link = store._room.connection.link
    scattered = link.scattered

    async def counted(commands: Sequence[Command]) -> list[object]:
        keys.extend(str(command[1]) for command in commands if command[0] == "HMGET")
        return await scattered(commands)

    monkeypatch.setattr(link, "scattered", counted)
    return keys


@pytest.mark.parametrize("tenant", ["t", None])
async def test_a_page_by_time_reads_its_own_sessions_only(
    store: SessionStore, asked: list[str], tenant: str | None
) -> None:
    for n in range(60):
        await store.create("t", f"s{n:02}")
        await a_moment()
    await store.create("u", "last")
    others = [] if tenant else ["last"]
    by_age = others + [f"s{n:02}" for n in reversed(range(60))]
    assert (await store.sessions(tenant, limit=1)).total == len(by_age)
    asked.clear()
    for how in ({}, {"sort": "created_at"}, {"contains": "s"}):
        expected = by_age if "contains" not in how else [name for name in by_age if "s" in name]
        assert await names(store, tenant, offset=20, limit=5, **how) == expected[20:25]
    ascending = await names(store, tenant, offset=58, limit=5, descending=False)
    assert ascending == by_age[::-1][58:63]
    assert len(asked) <= 20
    asked.clear()
    assert await store.expire(3600) == 0
    assert asked == []


async def test_sessions_from_before_the_index_by_time_are_placed_once(
    store: SessionStore, raw: Redis, asked: list[str]
) -> None:
    for n in range(30):
        await store.create("t", f"s{n:02}")
        await a_moment()
    await store.append("t", HOUSE, [NewItem("rating", {})])
    by_age = await names(store, "t")
    keys = store._room.keys
    raw.delete(keys.updated("t"))
    raw.delete(keys.created("t"))
    raw.delete(keys.placed)
    raw.set(keys.session("t", "s05").root + "meta", "no hash")
    asked.clear()
    assert await names(store, "t", limit=10) == by_age[:10]
    assert len(asked) <= 50
    asked.clear()
    assert await names(store, "t", limit=10, sort="created_at") == by_age[:10]
    assert len(asked) == 10
    with pytest.raises(StoreCorrupt):  # as it was, but for its own page only
        await names(store, "t", offset=20, limit=10)
    assert await store.delete("t", "s05")
    assert await names(store, "t", offset=20, limit=10) == [n for n in by_age if n != "s05"][20:]


async def test_a_page_of_a_redis_that_takes_no_writes(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who looks for what fills it has to see it, placed or not."""
    await store.append("t", "s", [NewItem("rating", {})], "key", "hash")
    await a_moment()
    await store.create("t", "newer")
    run, read = Connection.run, Connection.read

    async def full(*_: object, **__: object) -> object:
        raise StoreUnavailable("OOM command not allowed")

    async def reading(connection: Connection, *command: Argument) -> object:
        return await (full() if command[0] == "ZADD" else read(connection, *command))

    monkeypatch.setattr(Connection, "run", full)
    monkeypatch.setattr(Connection, "read", reading)
    assert await names(store, "t") == ["newer", "s"]
    monkeypatch.setattr(Connection, "read", read)
    assert await names(store, "t") == ["newer", "s"]
    monkeypatch.setattr(timeline, "INDEX_GRACE_S", -1)  # every time may be corrected, none can be
    assert await names(store, "t") == ["newer", "s"]
    monkeypatch.setattr(Connection, "run", run)
    assert await names(store, "t") == ["newer", "s"]
