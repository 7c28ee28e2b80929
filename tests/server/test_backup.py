"""Backups taken while a server works, restored on an empty machine, as docs/operating.md says."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis
from redis_process import RedisProcess, until

from server.sessions import EmbeddedRedis, NewItem, SessionStore


class Writer:
    """Teaches without a pause; `told` is what was acknowledged so far."""

    def __init__(self, url: str) -> None:
        self.told: list[str] = []
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._write()))

    async def _write(self) -> None:
        async with await SessionStore.open(self._url) as store:
            while not self._stop.is_set():
                text = f"item {len(self.told)}"
                name = f"s{len(self.told) % 7}"
                await store.append("t", name, [NewItem("demonstration", {"completion": text}, "")])
                self.told.append(text)

    def __enter__(self) -> "Writer":
        self._thread.start()
        until(lambda: len(self.told) > 50 or not self._thread.is_alive())
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


async def restored(url: str) -> set[str]:
    """Every text in every session of a Redis."""
    async with await SessionStore.open(url) as store:
        page = await store.sessions("t", limit=100)
        found = set()
        for pointer in page.sessions:
            items = await store.items("t", pointer.session_id, limit=100_000)
            found |= {str(one.payload["completion"]) for one in items}
        return found


def test_the_embedded_redis_file_by_file_while_it_runs(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "data") as redis, Writer(redis.url) as writer:
        client = Redis.from_url(redis.url)
        with client:
            client.config_set("auto-aof-rewrite-percentage", 0)
            until(lambda: not client.info("persistence")["aof_rewrite_in_progress"])
        told = set(writer.told)
        (tmp_path / "backup").mkdir()
        for part in ("appendonly.aof", "appendonlydir"):
            source = tmp_path / "data" / part
            if source.is_dir():
                shutil.copytree(source, tmp_path / "backup" / part)
            elif source.is_file():
                shutil.copy(source, tmp_path / "backup" / part)
        until(lambda: len(writer.told) > len(told))  # it went on
    with EmbeddedRedis(tmp_path / "backup") as again:
        found = asyncio.run(restored(again.url))
    assert found >= told


@contextmanager
def external(folder: Path, *options: str) -> Iterator[RedisProcess]:
    redis = RedisProcess(folder, "--save", "", *options)
    try:
        redis.start()
        yield redis
    finally:
        redis.kill()


@pytest.mark.parametrize("how", ["bgsave", "replica"])
def test_an_external_redis_by_its_rdb_file(tmp_path: Path, how: str) -> None:
    """`BGSAVE` and the file it names, or what `redis-cli --rdb` does: to be a replica once."""
    durable = ("--appendonly", "yes", "--appendfsync", "always")
    with external(tmp_path / "redis", *durable) as redis:
        url = f"redis://127.0.0.1:{redis.port}"
        with Writer(url) as writer:
            told = set(writer.told)
            if how == "bgsave":
                until(redis.has_a_log)  # one child at a time: until then it is refused
                redis.client.bgsave()
                until(lambda: not redis.client.info("persistence")["rdb_bgsave_in_progress"])
                backup = tmp_path / "redis" / "dump.rdb"
            else:
                backup = tmp_path / "replica" / "dump.rdb"
                with external(tmp_path / "replica") as copy:
                    copy.client.replicaof("127.0.0.1", redis.port)
                    until(lambda: copy.client.info("replication")["master_link_status"] == "up")
                    copy.client.save()
    (tmp_path / "new").mkdir()
    shutil.copy(backup, tmp_path / "new" / "dump.rdb")
    # Without an append-only file it reads the RDB file; told to begin one, it keeps both.
    with external(tmp_path / "new") as again:
        url = f"redis://127.0.0.1:{again.port}"
        assert asyncio.run(restored(url)) >= told
        again.client.config_set("appendfsync", "always")
        again.client.config_set("appendonly", "yes")
        until(again.has_a_log)
    with external(tmp_path / "new", *durable) as third:
        assert asyncio.run(restored(f"redis://127.0.0.1:{third.port}")) >= told
