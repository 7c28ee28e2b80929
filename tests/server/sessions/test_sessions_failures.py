"""Redis gone, full, read-only, foreign or damaged: always our errors, nothing half done."""

import asyncio
import os
import re
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from redis import Redis
from redis_process import redis_cluster

from server.sessions import (
    EmbeddedRedis,
    InvalidName,
    NewItem,
    SessionStore,
    SessionStoreError,
    StoreCorrupt,
    StoreRefused,
    StoreUnavailable,
    VersionRecord,
)
from server.sessions.connection import Connection

pytestmark = pytest.mark.anyio

T = TypeVar("T")
ITEM = NewItem("demonstration", {"prompt": "p"}, "p")


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """One that a test may break."""
    with EmbeddedRedis(tmp_path / "data") as redis:
        yield redis


async def every_call(store: SessionStore) -> list[object]:
    """What each call does, one after the other: its result or its error."""
    pointer = await store.pointer("t", "other")
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.ping(),
        lambda: store.pointer("t", "s"),
        lambda: store.derivation("t", "s"),
        lambda: store.items("t", "s"),
        lambda: store.item("t", "s", 1),
        lambda: store.versions("t", "s"),
        lambda: store.version_record("t", "s", 1),
        lambda: store.snapshot("t", "s", 1),
        lambda: store.events("t", "s"),
        lambda: store.append("t", "s", [ITEM], "key", "hash"),
        lambda: store.promote(pointer, b"x", VersionRecord("init", (), "r", "b")),
        lambda: store.refuse("t", "s", (1,), "no"),
        lambda: store.settle("t", "s", "key", 1, {}),
        lambda: store.forget("t", "s", 1),
        lambda: store.rollback("t", "s", 0),
        lambda: store.reset("t", "s"),
        lambda: store.sessions(),
        lambda: store.pending_sessions(),
        lambda: store.save_completion("t", "s", "c", {}),
        lambda: store.completion("t", "c"),
    ]
    results: list[object] = []
    for call in calls:
        try:
            results.append(await call())
        except SessionStoreError as error:
            results.append(error)
    return results


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("meta", "string"),
        ("items", "list"),
        ("payloads", "set"),
        ("prompts", "string"),
        ("versions", "list"),
        ("idempotency", "string"),
        ("idempotency_age", "hash"),
        ("events", "hash"),
    ],
)
async def test_a_foreign_type_under_our_key(
    store: SessionStore,
    raw: Redis,
    dump_of: Callable[[SessionStore], dict[str, object]],
    part: str,
    kind: str,
) -> None:
    await store.append("t", "s", [ITEM])
    await store.append("t", "other", [ITEM])
    key = store._room.keys.session("t", "s").root + part
    raw.delete(key)
    write = {"string": "SET", "list": "LPUSH", "set": "SADD", "hash": "HSET"}[kind]
    values = ("x", "y") if kind == "hash" else ("x",)
    raw.eval(f"redis.call('{write}', KEYS[1], unpack(ARGV))", 1, key, *values)
    root = store._room.keys.session("t", "s").root
    before = {key: value for key, value in dump_of(store).items() if key.startswith(root)}
    errors = [r for r in await every_call(store) if isinstance(r, SessionStoreError)]
    assert sum(isinstance(error, StoreCorrupt) for error in errors) >= 6
    assert not any(isinstance(error, StoreUnavailable) for error in errors)
    if part != "meta":
        assert raw.hdel(root + "meta", "used_ms") == 1  # a completion was kept
    after = {key: value for key, value in dump_of(store).items() if key.startswith(root)}
    after.pop(root + "completions")  # not one of a script's keys
    assert after == before  # no script got half way
    assert (await store.pointer("t", "other")).items == 1
    # Deletion is the way out.
    await store.delete("t", "s")
    assert not any(key.startswith(root) for key in dump_of(store))
    assert (await store.append("t", "s", [ITEM])).item_ids == (1,)


async def test_texts_that_this_room_never_wrote(store: SessionStore, raw: Redis) -> None:
    await store.append("t", "s", [ITEM])
    read = await store.derivation("t", "s")
    await store.promote(read.pointer, b"x", VersionRecord("init", (1,), "r", "b"))
    keys = store._room.keys.session("t", "s")
    for key, field, text, asked in (
        (keys.items, "1", "no json", lambda: store.item("t", "s", 1)),
        (keys.items, "1", "{}", lambda: store.derivable("t", "s")),
        (keys.payloads, "1", "[", lambda: store.items("t", "s")),
        (keys.versions, "1", "{}", lambda: store.snapshot("t", "s", 1)),
        (keys.meta, "active", "many", lambda: store.pointer("t", "s")),
        (keys.meta, "active", "many", lambda: store.sessions()),
    ):
        good = raw.hget(key, field)
        raw.hset(key, field, text)
        with pytest.raises(StoreCorrupt, match="delete the session, or restore"):
            await asked()
        raw.hset(key, field, good)
    raw.hset(keys.items, "1", "no json")
    with pytest.raises(StoreCorrupt):
        await store.forget("t", "s", 1)
    raw.set(store._room.keys.completion("t", "c"), "no json")
    with pytest.raises(StoreCorrupt):
        await store.completion("t", "c")


async def test_a_payload_that_is_gone_is_not_an_empty_one(store: SessionStore, raw: Redis) -> None:
    await store.append("t", "s", [ITEM])
    raw.delete(store._room.keys.session("t", "s").payloads)
    with pytest.raises(StoreCorrupt, match="payload is gone"):
        await store.derivable("t", "s")


async def test_a_full_redis(own_redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture) -> None:
    async with await SessionStore.open(own_redis.url) as store:
        await store.append("t", "s", [ITEM])
        before = await store.pointer("t", "s")
        with Redis.from_url(own_redis.url) as raw:
            raw.config_set("maxmemory", 1)
            with pytest.raises(StoreUnavailable, match="is full") as told:
                await store.append("t", "s", [NewItem("rating", {})])
            with pytest.raises(StoreUnavailable, match="is full") as again:
                await store.promote(before, b"x", VersionRecord("init", (1,), "r", "b"))
            assert await store.pointer("t", "s") == before
            raw.config_set("maxmemory", 0)
        assert await store.promote(before, b"x", VersionRecord("init", (1,), "r", "b")) == 1
    for error in (told, again):
        assert "innerloop:" not in str(error.value)
    (line,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "raise its maxmemory" in line.getMessage()


async def test_what_is_logged_of_a_pipeline_is_no_key_and_no_text(
    own_redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    async with await SessionStore.open(own_redis.url) as store:
        await store.append("t", "whose", [ITEM])
        before = await store.pointer("t", "whose")
        with Redis.from_url(own_redis.url) as raw:
            raw.config_set("maxmemory", 1)
            with pytest.raises(StoreUnavailable):
                await store.promote(before, b"secret", VersionRecord("init", (1,), "r", "b"))
            raw.config_set("maxmemory", 0)
    assert "OutOfMemoryError: SET: " in caplog.text
    assert "whose" not in caplog.text
    assert "secret" not in caplog.text


async def test_a_redis_that_is_away_is_told_to_the_log_and_not_to_callers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = "redis://:hush-hush@127.0.0.1:1"
    connection = Connection(nowhere, timeout_s=1)
    for call in (connection.read("GET", "k"), connection.write("SET", "k", 1), connection.ping()):
        with pytest.raises(StoreUnavailable, match="try again in a moment") as caught:
            await call
        assert "127.0.0.1" not in str(caught.value)
    await connection.aclose()
    (line,) = [record for record in caplog.records if record.name == "server.sessions.outage"]
    assert line.levelname == "WARNING"
    assert "127.0.0.1:1" in line.getMessage()
    assert "hush-hush" not in line.getMessage()


async def test_a_read_only_redis(
    own_redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    async with await SessionStore.open(own_redis.url) as store:
        await store.append("t", "s", [ITEM])
        with Redis.from_url(own_redis.url) as raw:
            raw.config_set("replica-serve-stale-data", "yes")
            raw.replicaof("127.0.0.1", 1)
            for call in (
                store.append("t", "s", [ITEM]),
                store.refuse("t", "s", (1,), "no"),
                store.save_completion("t", "s", "c", {}),
                store.delete("t", "s"),
            ):
                with pytest.raises(StoreUnavailable, match="try again"):
                    await call
            assert "read only" in caplog.text
            assert (await store.pointer("t", "s")).items == 1
            raw.replicaof("NO", "ONE")
        await store.append("t", "s", [ITEM])


async def at_last(call: Callable[[], Awaitable[T]]) -> T:
    """Ask until the answer comes in time: a busy machine may need longer than `timeout_s`."""
    async with asyncio.timeout(600):
        while True:
            try:
                return await call()
            except StoreUnavailable:
                await asyncio.sleep(0.05)


async def test_a_redis_that_hangs(own_redis: EmbeddedRedis) -> None:
    assert own_redis.pid is not None
    opened = await at_last(lambda: SessionStore.open(own_redis.url, timeout_s=0.5))
    async with opened as store:
        await at_last(lambda: store.append("t", "s", [ITEM]))
        os.kill(own_redis.pid, signal.SIGSTOP)
        try:
            with pytest.raises(StoreUnavailable, match="try again"):
                await store.pointer("t", "s")
            with pytest.raises(StoreUnavailable):
                await store.append("t", "s", [ITEM])
        finally:
            os.kill(own_redis.pid, signal.SIGCONT)
        assert (await at_last(lambda: store.pointer("t", "s"))).exists


async def test_a_redis_that_is_gone(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as redis:
        store = await SessionStore.open(redis.url)
        await store.append("t", "other", [ITEM])
        pointer = await store.pointer("t", "other")
    async with store:
        for call in (
            store.ping(),
            store.pointer("t", "s"),
            store.append("t", "s", [ITEM]),
            store.promote(pointer, b"x", VersionRecord("init", (1,), "r", "b")),
            store.sessions(),
            store.delete("t", "s"),
        ):
            with pytest.raises(StoreUnavailable, match="try again in a moment"):
                await call
    with pytest.raises(StoreUnavailable):
        await SessionStore.open(f"unix://{tmp_path}/none.sock")


async def test_reads_wait_for_a_child_that_comes_back(own_redis: EmbeddedRedis) -> None:
    assert own_redis.pid is not None
    async with await SessionStore.open(own_redis.url) as store:
        await store.append("t", "s", [ITEM])
        os.kill(own_redis.pid, signal.SIGKILL)
        await asyncio.to_thread(own_redis.ensure_running)
        assert (await store.pointer("t", "s")).items == 1
        await store.append("t", "s", [NewItem("rating", {})])
        assert (await store.pointer("t", "s")).items == 2


async def test_another_schema_is_refused(
    redis_url: str, raw: Redis, keys_of: Callable[[SessionStore], set[str]]
) -> None:
    async with await SessionStore.open(redis_url, namespace="schema") as first:
        assert raw.get("schema:schema") == b"1"
        assert first.deployment
        async with await SessionStore.open(redis_url, namespace="schema") as second:
            assert second.deployment == first.deployment
        raw.set("schema:schema", "2")
        with pytest.raises(StoreRefused, match="knows schema 1 only: run the server version"):
            await SessionStore.open(redis_url, namespace="schema")
        raw.delete("schema:schema")
        raw.lpush("schema:schema", "x")
        with pytest.raises(StoreCorrupt):
            await SessionStore.open(redis_url, namespace="schema")
    raw.delete("schema:schema", "schema:deployment")


async def test_a_redis_that_evicts_is_refused(
    own_redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    with Redis.from_url(own_redis.url) as raw:
        raw.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(StoreRefused, match="set it to noeviction"):
            await SessionStore.open(own_redis.url)
        # An access list that hides the policy does not keep us out.
        raw.acl_setuser(
            "app", enabled=True, passwords=["+pw"], keys="*", categories=["+@all", "-@dangerous"]
        )
    url = own_redis.url.replace("unix://", "unix://app:pw@")
    async with await SessionStore.open(url) as store:
        await store.append("t", "s", [ITEM])
    with pytest.raises(StoreUnavailable, match="cannot answer"):
        await SessionStore.open(url.replace("pw@", "other@"))
    assert re.search(r"(?i)invalid|wrong", caplog.text)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense", ""])
async def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(StoreRefused, match="Redis URL"):
        await SessionStore.open(url)


@pytest.mark.parametrize("namespace", ["", "a:b", "{a}", "a" * 65])
async def test_a_namespace_that_is_none(redis_url: str, namespace: str) -> None:
    with pytest.raises(InvalidName, match="namespace"):
        await SessionStore.open(redis_url, namespace=namespace)


async def test_history_must_keep_something(redis_url: str) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        await SessionStore.open(redis_url, history_versions=0)
    with pytest.raises(ValueError, match="history_snapshots 0"):
        await SessionStore.open(redis_url, history_snapshots=0)


@pytest.fixture
def cluster_port(tmp_path: Path) -> Iterator[int]:
    """One node in cluster mode that owns all slots."""
    with redis_cluster(tmp_path, 1) as (node,):
        yield node.port


async def test_scripts_keep_to_one_slot_of_a_cluster(cluster_port: int) -> None:
    """A node in cluster mode answers CROSSSLOT to a script or MULTI over keys of two slots."""
    async with await SessionStore.open(f"redis://127.0.0.1:{cluster_port}") as store:
        await store.append("t", "s", [ITEM, NewItem("rating", {}, "p")], "key", "hash")
        await store.append("t", "s", [ITEM])
        read = await store.derivation("t", "s")
        record = VersionRecord("init", tuple(item.id for item in read.items), "r", "b")
        await store.promote(read.pointer, b"x", record, idempotency_key="key", answer={})
        unexpected = (StoreCorrupt, StoreUnavailable)
        assert not [r for r in await every_call(store) if isinstance(r, unexpected)]
        assert await store.delete("t", "s")
        with Redis(port=cluster_port) as raw:
            assert sorted(raw.scan_iter()) == [b"innerloop:deployment", b"innerloop:schema"]
