"""The store on a real Redis Cluster: three nodes, slots that move under load, a node that dies."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from redis_process import (
    SLOTS,
    RedisProcess,
    cluster_url,
    join,
    migrate_slot,
    move_slot,
    redis_cluster,
    until,
)

from server.sessions import (
    NewItem,
    SessionStore,
    StoreRefused,
    StoreUnavailable,
    VersionRecord,
)

pytestmark = pytest.mark.anyio

SNAPSHOT = b"snapshot" * 1000


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisProcess]]:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as started:
        for node in started:
            be_patient(node)
        until(lambda: all(is_up(node) for node in started))
        yield started


def be_patient(node: RedisProcess) -> None:
    """Have it take no node for dead that a busy machine holds up for some seconds."""
    node.client.config_set("cluster-node-timeout", 600_000)


def is_up(node: RedisProcess) -> bool:
    return bool(node.client.cluster("INFO")["cluster_state"] == "ok")


@pytest.fixture
async def spread(nodes: list[RedisProcess]) -> AsyncIterator[SessionStore]:
    """A store under a namespace of its own, told of two of the nodes."""
    url = cluster_url(nodes[:2])
    async with await SessionStore.open(url, namespace=secrets.token_hex(4)) as opened:
        yield opened


def item(text: str) -> NewItem:
    return NewItem("demonstration", {"completion": text}, "")


async def teach(store: SessionStore, session: str, snapshot: bytes = SNAPSHOT) -> int:
    """Derive over everything and promote, as a lesson does."""
    read = await store.derivation("t", session)
    record = VersionRecord("init", tuple(one.id for one in read.items), "r", "b")
    return await store.promote(read.pointer, snapshot, record)


def slot_of(store: SessionStore, session: str, node: RedisProcess) -> int:
    key = store._room.keys.session("t", session).meta
    return int(node.client.cluster("KEYSLOT", key))


def owner(slot: int, nodes: list[RedisProcess]) -> RedisProcess:
    """Who has a slot, as it says itself."""
    for node in nodes:
        for first, last, primary, *_ in node.client.execute_command("CLUSTER SLOTS"):
            mine = int(primary[1]) == node.port
            if mine and int(first) <= slot <= int(last):
                return node
    raise AssertionError(f"nobody has slot {slot}")


async def test_sessions_live_on_all_nodes(spread: SessionStore, nodes: list[RedisProcess]) -> None:
    before = [node.client.dbsize() for node in nodes]
    names = {f"s{n}" for n in range(16)}
    for name in names:
        await spread.append("t", name, [item("a")], "key", "hash")
        assert await teach(spread, name) == 1
    grown = [node.client.dbsize() - size for node, size in zip(nodes, before, strict=True)]
    assert all(count > 10 for count in grown), grown
    page = await spread.sessions("t", limit=100)
    assert {pointer.session_id for pointer in page.sessions} == names
    for name in names:
        assert await spread.snapshot("t", name, 1) == SNAPSHOT
        assert await spread.delete("t", name)
    assert [node.client.dbsize() - size for node, size in zip(nodes, before, strict=True)] != grown
    assert (await spread.sessions("t")).total == 0
    await spread.ping()


async def test_slots_that_move_under_load_lose_nothing_acknowledged(
    spread: SessionStore, nodes: list[RedisProcess]
) -> None:
    told: dict[str, list[str]] = {f"m{n}": [] for n in range(8)}
    done = asyncio.Event()

    async def until_answered(call: str, *args: object) -> None:
        while True:
            with suppress(StoreUnavailable):
                await getattr(spread, call)("t", *args)
                return
            await asyncio.sleep(0.02)

    async def work(name: str) -> None:
        while not done.is_set():
            text = f"{name}-{len(told[name])}"
            await until_answered("append", name, [item(text)], text, text)
            told[name].append(text)
            if len(told[name]) % 5 == 0:
                with suppress(StoreUnavailable):
                    await teach(spread, name)
            await until_answered("save_completion", name, f"c-{text}", {"text": text})

    async def told_more(count: int) -> None:
        wanted = sum(map(len, told.values())) + count
        while sum(map(len, told.values())) < wanted:
            await asyncio.sleep(0.01)

    workers = [asyncio.create_task(work(name)) for name in told]
    while not all(told.values()):
        await asyncio.sleep(0.01)
    keys = spread._room.keys
    slots = [slot_of(spread, name, nodes[0]) for name in told]
    slots += [int(nodes[0].client.cluster("KEYSLOT", key)) for key in (keys.pending, keys.tenants)]
    moved = 0
    for shift in (1, 2):
        for slot in slots:
            source = owner(slot, nodes)
            target = nodes[(nodes.index(source) + shift) % len(nodes)]
            moved += await asyncio.to_thread(move_slot, slot, source, target, 0.005)
            await told_more(3)
    done.set()
    await asyncio.gather(*workers)
    assert moved > len(told) * 8
    assert sum(map(len, told.values())) > 50
    async with await SessionStore.open(cluster_url(nodes), namespace=keys.namespace) as fresh:
        page = await fresh.sessions("t", limit=100)
        assert {pointer.session_id for pointer in page.sessions} == set(told)
        for name, texts in told.items():
            items = await fresh.items("t", name, limit=10_000)
            assert [one.payload["completion"] for one in items] == texts  # each of them, once
            for text in texts:
                assert (await fresh.completion("t", f"c-{text}")).payload == {"text": text}
            for version in await fresh.versions("t", name):
                if version.snapshot_bytes:
                    assert await fresh.snapshot("t", name, version.number) == SNAPSHOT


async def test_a_script_that_meets_a_moving_snapshot_writes_nothing(
    spread: SessionStore, nodes: list[RedisProcess]
) -> None:
    """Redis does not undo a script: it must fail before it writes, or not at all."""
    await spread.append("t", "s", [item("a"), NewItem("rating", {}, "q")], "key", "hash")
    assert await teach(spread, "s") == 1
    await spread.append("t", "s", [item("b")])
    version = await spread.version_record("t", "s", 1)
    snapshot = spread._room.keys.session("t", "s").snapshot(version.snapshot_id)
    slot = slot_of(spread, "s", nodes[0])
    source = owner(slot, nodes)
    target = nodes[(nodes.index(source) + 1) % 3]
    read = await spread.derivation("t", "s")
    before = await spread.pointer("t", "s")
    with migrate_slot(slot, source, target):
        source.client.migrate("127.0.0.1", target.port, snapshot, 0, 600_000)
        for call in (spread.forget("t", "s", 1), spread.rollback("t", "s", 0), teach(spread, "s")):
            with pytest.raises(StoreUnavailable):
                await call
        assert (await spread.pointer("t", "s")) == before
        assert await spread.derivation("t", "s") == read
    assert (await spread.forget("t", "s", 1)).versions == (1,)
    assert await teach(spread, "s") == 2
    assert not target.client.exists(snapshot)


async def test_a_slot_that_moves_to_a_node_nobody_told_us_of(
    spread: SessionStore, nodes: list[RedisProcess], tmp_path: Path
) -> None:
    await spread.append("t", "s", [item("a")])
    slot = slot_of(spread, "s", nodes[0])
    source = owner(slot, nodes)
    new = RedisProcess(tmp_path, *nodes[0].options)
    try:
        new.start()
        be_patient(new)
        join(new, source)
        name = new.client.cluster("MYID").decode()
        until(lambda: is_up(new))
        # All of them: who has not heard of it cannot forget it.
        until(lambda: all(name in str(node.client.cluster("NODES")) for node in nodes))
        with migrate_slot(slot, source, new):
            for key in source.client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                source.client.migrate("127.0.0.1", new.port, key, 0, 600_000)
            with pytest.raises(StoreUnavailable):
                await spread.append("t", "s", [item("b")])  # some of its keys are nowhere yet
        await spread.append("t", "s", [item("b")])
        assert (await spread.pointer("t", "s")).items == 2
        assert new.client.dbsize() > 0
        move_slot(slot, new, source)
        assert (await spread.pointer("t", "s")).items == 2
    finally:
        for node in nodes:
            node.client.execute_command("CLUSTER", "FORGET", new.client.cluster("MYID"))
        new.kill()


async def test_a_node_that_dies_and_comes_back(
    spread: SessionStore, nodes: list[RedisProcess]
) -> None:
    names = [f"s{n}" for n in range(6)]
    for name in names:
        await spread.append("t", name, [item("a")])
    victim = owner(slot_of(spread, names[0], nodes[0]), nodes)
    victim.kill()
    with pytest.raises(StoreUnavailable, match="try again in a moment"):
        await spread.append("t", names[0], [item("b")])
    with pytest.raises(StoreUnavailable):
        await spread.ping()
    victim.start()
    be_patient(victim)
    # For two seconds it takes no slots, and its reads would not be tried again for so long.
    until(lambda: all(is_up(node) for node in nodes))

    async def back() -> None:
        while True:
            try:
                await spread.append("t", "new", [item("a")], "key", "hash")
                return
            except StoreUnavailable:
                await asyncio.sleep(0.1)

    await asyncio.wait_for(back(), 600)
    for name in names:
        assert (await spread.pointer("t", name)).items == 1


async def test_a_session_of_more_items_than_lua_takes_at_once(spread: SessionStore) -> None:
    """What forking, promoting and restoring do with a log, though it fits into no one call."""
    count = 9_000
    await spread.append("t", "s", [item(str(n)) for n in range(1, count + 1)])
    await teach(spread, "s")
    await spread.forget("t", "s", 4001)  # the first of the second part has no payload any more
    found = await spread.items("t", "s", limit=count)
    assert [one.id for one in found] == list(range(1, count + 1))
    texts = [one.payload.get("completion") for one in found]
    assert texts == [None if n == 4001 else str(n) for n in range(1, count + 1)]
    for limit in (4000, 4001, 8001):
        assert await spread.items("t", "s", limit=limit) == found[:limit]
    assert await spread.items("t", "s", offset=499, limit=8100) == found[499:8599]

    copied = [NewItem(one.kind, one.payload, one.prompt_key) for one in found if one.id != 4001]
    await spread.append("t", "fork", copied)
    await teach(spread, "fork")
    await spread.rollback("t", "fork", 0)
    assert (await spread.rollback("t", "fork", 1)).applied == count - 1


async def test_its_url_has_to_say_that_it_is_a_cluster(nodes: list[RedisProcess]) -> None:
    async def use(node: RedisProcess) -> None:
        url = f"redis://127.0.0.1:{node.port}"
        async with await SessionStore.open(url, namespace=secrets.token_hex(4)) as wrong:
            for number in range(SLOTS):  # some of the slots are its own
                await wrong.pointer("t", f"s{number}")

    for node in nodes:
        with pytest.raises(StoreRefused, match=r"give its URL as redis\+cluster://"):
            await use(node)


async def test_replicas_cannot_be_asked_to_confirm(nodes: list[RedisProcess]) -> None:
    with pytest.raises(StoreRefused, match="min-replicas-to-write"):
        await SessionStore.open(cluster_url(nodes), replicas=1)


async def test_a_cluster_that_is_not_there() -> None:
    with pytest.raises(StoreUnavailable, match="try again"):
        await SessionStore.open("redis+cluster://127.0.0.1:1,127.0.0.1:2")
