"""A primary, two replicas and a Sentinel: the primary killed and hung under a server's load."""

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from redis_process import RedisProcess, until
from server_harness import LiveServer, make_settings
from server_model import make_model_folder
from test_crashes import CYCLES, Client, Ledger, check, load, merged

from server.sessions import NewItem, Pointer, SessionStore, StoreRefused, StoreUnavailable
from server.sessions.link import SENTINEL_WAIT_S

DISK = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")


class Watched:
    """Three redis-servers of which the Sentinel calls one the primary."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.redises = [RedisProcess(folder / f"redis-{n}", *DISK) for n in range(3)]
        for number, one in enumerate(self.redises):
            stack.callback(one.kill)
            one.start()
            if number:
                one.client.replicaof("127.0.0.1", self.redises[0].port)
        self.sentinel = RedisProcess(folder / "sentinel")
        self.sentinel.folder.mkdir()
        settings = self.sentinel.folder / "sentinel.conf"
        settings.write_text(
            f"sentinel monitor main 127.0.0.1 {self.redises[0].port} 1\n"
            "sentinel down-after-milliseconds main 5000\n"
            "sentinel failover-timeout main 3000\n"
        )
        stack.callback(self.sentinel.kill)
        self.sentinel.start(str(settings), "--sentinel")
        until(lambda: self.count() == 2)

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.sentinel.port}/main"

    def primary(self) -> RedisProcess:
        """Whom the Sentinel names."""
        _, port = self.sentinel.client.sentinel_get_master_addr_by_name("main")
        return next(one for one in self.redises if one.port == int(port))

    def count(self) -> int:
        """Replicas that follow the primary and are up to date."""
        told = self.primary().client.info("replication")
        replicas = [told[f"slave{n}"] for n in range(told["connected_slaves"])]
        known = self.sentinel.client.sentinel_slaves("main")
        up = [one for one in replicas if one["state"] == "online"]
        return min(len(up), sum("s_down" not in str(one["flags"]) for one in known))

    def fail_over(self, number: signal.Signals) -> RedisProcess:
        """Kill or stop the primary, and return it once another has taken its place."""
        old = self.primary()
        old.signal(number)
        until(lambda: self.primary() is not old)
        return old


@contextmanager
def watched(folder: Path) -> Iterator[Watched]:
    with ExitStack() as stack:
        yield Watched(folder, stack)


class Teaching(Client):
    """Corrects nothing: a completion that no replica had yet is gone, which is no feedback."""

    def _correct(self, ledger: Ledger) -> None:
        self._adapt_later(ledger)


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL][: 2 if CYCLES > 5 else 1])
def test_nothing_confirmed_is_lost_when_the_primary_is(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs wakes up as a primary, among servers that have connections to it."""
    # What is asked of the one that hangs is given up as soon as a server would.
    monkeypatch.setitem(SessionStore.open.__func__.__kwdefaults__, "timeout_s", 5.0)
    make_model_folder(tmp_path / "tiny")
    with watched(tmp_path) as redis:
        settings = make_settings(
            tmp_path / "tiny", tmp_path, redis_url=redis.url, redis_replicas=1, takeover_s=1
        )
        with LiveServer(settings) as live, live.client() as http:
            clients = [Teaching(live.urls[0], f"client-{n}", n) for n in range(3)]

            def taught() -> int:
                return sum(len(one.told) for c in clients for one in (c.own, c.shared))

            with load(clients):
                until(lambda: taught() > 5)
                old = redis.fail_over(number)
                if number == signal.SIGSTOP:
                    time.sleep(2 * SENTINEL_WAIT_S)  # what was read in between may be older
                    old.signal(signal.SIGCONT)
                known = taught()
                until(lambda: taught() > known + 5)
            for ledger in [c.own for c in clients] + [merged([c.shared for c in clients])]:
                check(http, ledger)
            for client in clients:
                client.close()


ITEM = NewItem("demonstration", {"completion": "a"}, "")


@pytest.mark.parametrize("replicas", [0, 1])
def test_what_no_replica_has_is_acknowledged_only_where_none_is_asked(
    tmp_path: Path, replicas: int
) -> None:
    async def scenario(redis: Watched) -> None:
        async with await SessionStore.open(redis.url, replicas=replicas) as store:
            await acknowledged(store, "first")
            primary = redis.primary()
            others = [one for one in redis.redises if one is not primary]
            items = store._room.keys.session("t", "s").items
            for one in others:
                # It comes later than the answer, and to a disk later still.
                await asyncio.to_thread(until, lambda one=one: one.client.hlen(items) == 1)
                await asyncio.to_thread(until, one.has_a_log)
                one.stop()
            if replicas:
                with pytest.raises(StoreUnavailable, match="0 of the 1 replicas"):
                    await store.append("t", "s", [ITEM], "key", "hash")
            else:
                await store.append("t", "s", [ITEM], "key", "hash")
            primary.kill()
            for one in others:
                one.start("--replicaof", "127.0.0.1", str(primary.port))
            await asyncio.to_thread(until, lambda: redis.primary() is not primary)
            while (pointer := await looked_at(store)) is None:
                await asyncio.sleep(0.1)
            assert pointer.items == 1  # with no replica asked for, one acknowledged item is lost
            await asyncio.to_thread(until, lambda: redis.count() == 1)
            await acknowledged(store, "key")
            assert (await store.pointer("t", "s")).items == 2

    with watched(tmp_path) as redis:
        asyncio.run(scenario(redis))


async def acknowledged(store: SessionStore, key: str) -> None:
    """Append an item once, however long a replica takes to confirm it."""
    while True:
        with suppress(StoreUnavailable):
            await store.append("t", "s", [ITEM], key, "hash")
            return
        await asyncio.sleep(0.1)


async def looked_at(store: SessionStore) -> Pointer | None:
    """The session, unless Redis is away."""
    with suppress(StoreUnavailable):
        return await store.pointer("t", "s")
    return None


def test_without_a_sentinel_or_its_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def opened(url: str) -> None:
        await (await SessionStore.open(url)).aclose()

    with pytest.raises(StoreUnavailable, match="cannot answer"):
        asyncio.run(opened("redis+sentinel://127.0.0.1:1,127.0.0.1:2/main"))
    assert "No master found for 'main'" in caplog.text
    with pytest.raises(StoreRefused, match="names the service they watch"):
        asyncio.run(opened("redis+sentinel://127.0.0.1:26379"))
