"""An acknowledgement that waits for the disk, on a Redis or Valkey that can tell when it synced."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis_process import RedisProcess

from server.sessions import NewItem, SessionStore, StoreRefused, StoreUnavailable
from server.sessions.binary import find_binary, identify
from server.sessions.confirmation import Confirmation
from server.settings import Settings

pytestmark = pytest.mark.anyio

ITEM = NewItem("demonstration", {"completion": "a"}, "")
KNOWS_WAITAOF = (7, 2)

Start = Callable[..., RedisProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started = []

    def begin(binary: Path, *options: str) -> RedisProcess:
        one = RedisProcess(tmp_path / str(len(started)), "--save", "", *options)
        one.binary = binary
        started.append(one)
        one.start()
        return one

    yield begin
    for one in started:
        one.kill()


@pytest.fixture
def able() -> Path:
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        binary = identify(Path(found)) if found else None
        if binary is not None and binary.version[:2] >= KNOWS_WAITAOF:
            return binary.path
    pytest.skip("no redis-server or valkey-server on PATH knows WAITAOF, which came with 7.2")


def url(redis: RedisProcess) -> str:
    return f"redis://127.0.0.1:{redis.port}"


@pytest.fixture
def patience_with_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write counts, however long the disk takes over it."""
    monkeypatch.setattr("server.sessions.connection.CONFIRMATION_WAIT_S", 20.0)


@pytest.mark.usefixtures("patience_with_disks")
async def test_what_was_synced_outlives_its_redis(able: Path, start: Start) -> None:
    redis = start(able, "--appendonly", "yes", "--appendfsync", "everysec")
    async with await SessionStore.open(url(redis), fsync=True) as store:
        for n in range(5):
            await store.append("t", f"s{n}", [ITEM], "key", "hash")
        read = await store.pointer("t", "s0")
        redis.kill()
        redis.start()
        assert (await store.sessions()).total == 5
        assert await store.pointer("t", "s0") == read


@pytest.mark.usefixtures("patience_with_disks")
async def test_what_is_not_synced_is_not_acknowledged(
    able: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    redis = start(able, "--appendonly", "yes", "--appendfsync", "everysec")
    async with await SessionStore.open(url(redis), fsync=True) as store:
        await store.append("t", "s", [ITEM])
        redis.client.config_set("appendfsync", "no")
        async with await SessionStore.open(url(redis)) as hasty:
            hasty._room.connection._confirmation = Confirmation(0, fsync=True, wait_ms=500)
            with pytest.raises(StoreUnavailable, match=r"did not sync.* INNERLOOP_REDIS_FSYNC"):
                await hasty.append("t", "s", [ITEM], "key", "hash")
        async with await SessionStore.open(url(redis)) as unasked:
            await unasked.append("t", "other", [ITEM])
        redis.client.config_set("appendfsync", "everysec")
        assert (await store.append("t", "s", [ITEM], "key", "hash")).repeated
        assert (await store.pointer("t", "s")).items == 2
        redis.client.config_set("appendonly", "no")
        with pytest.raises(StoreUnavailable, match="cannot answer"):
            await store.append("t", "s", [ITEM])
    assert "WAITAOF cannot be used" in caplog.text


async def test_replicas_are_waited_for_as_well(able: Path, start: Start) -> None:
    redis = start(able, "--appendonly", "yes", "--appendfsync", "always")  # synced before it waits
    async with await SessionStore.open(url(redis), fsync=True, replicas=1) as store:
        with pytest.raises(StoreUnavailable, match=r"^0 of the 1 replicas"):
            await store.append("t", "s", [ITEM])
        redis.client.config_set("appendfsync", "no")
        with pytest.raises(StoreUnavailable, match=r"did not sync.* and 0 of the 1 replicas"):
            await store.append("t", "s", [ITEM])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--appendonly", "no"), "no append-only file: set appendonly yes"),
        (("--appendonly", "yes", "--appendfsync", "no"), "appendfsync no"),
    ],
)
async def test_a_redis_that_never_syncs_is_refused(
    able: Path, start: Start, options: tuple[str, ...], why: str
) -> None:
    with pytest.raises(StoreRefused, match=f"INNERLOOP_REDIS_FSYNC: .*{why}"):
        await SessionStore.open(url(start(able, *options)), fsync=True)


async def test_a_redis_that_cannot_tell_is_refused(start: Start) -> None:
    binary = find_binary()
    if binary.version[:2] >= KNOWS_WAITAOF:
        pytest.skip(f"{binary.title} knows WAITAOF")
    redis = start(binary.path, "--appendonly", "yes")
    with pytest.raises(StoreRefused, match=r"WAITAOF came with .* older.* appendfsync always"):
        await SessionStore.open(url(redis), fsync=True)
    with pytest.raises(StoreRefused, match="on the nodes of a Cluster set appendfsync always"):
        await SessionStore.open(f"redis+cluster://127.0.0.1:{redis.port}", fsync=True)


async def test_the_embedded_redis_syncs_anyway() -> None:
    with pytest.raises(ValueError, match="the embedded one syncs every write"):
        Settings(redis_fsync=True)
