"""The child redis-server: durable, private, one per folder, and never left behind."""

import asyncio
import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError
from redis_process import until

from server.sessions import (
    DataFolderLocked,
    EmbeddedRedis,
    EmbeddedRedisError,
    NewItem,
    RedisServerTooOld,
    SessionStore,
    StoreUnavailable,
)
from server.sessions import folder as folder_module
from server.sessions.binary import find_binary
from server.sessions.folder import LOCK_NAME, LOG_NAME, RECORD_NAME, Record

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[3]

OWNER = """
import sys, time
from server.sessions import EmbeddedRedis
redis = EmbeddedRedis(sys.argv[1])
redis.start()
print(redis.pid, redis.url, flush=True)
time.sleep(600)
"""


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat_file = Path(f"/proc/{pid}/stat")
    try:
        return not stat_file.parent.parent.exists() or ") Z " not in stat_file.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextlib.contextmanager
def owner_process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """Another process that owns a folder: itself, its child's pid, its URL."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    try:
        pid, url = process.stdout.readline().split()
        yield process, int(pid), url
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def answers(socket: Path) -> bool:
    """Whether a server listens there, which it does a moment after the socket exists."""
    with Redis(unix_socket_path=str(socket)) as client:
        try:
            return bool(client.ping())
        except RedisError:
            return False


def raw(redis: EmbeddedRedis) -> Redis:
    return Redis.from_url(redis.url)


def test_it_is_private_and_durable(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "new" / "data folder") as redis:
        with raw(redis) as client:
            assert client.config_get("port") == {"port": "0"}
            assert client.config_get("appendfsync") == {"appendfsync": "always"}
            assert client.config_get("appendonly") == {"appendonly": "yes"}
            assert client.config_get("dir") == {"dir": str(tmp_path / "new" / "data folder")}
            client.set("key", "value")
        path = Path(redis.url.removeprefix("unix://"))
        assert len(os.fsencode(path)) < 104
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(redis.data_dir.stat().st_mode) == 0o700
        assert redis.pid is not None
        # A session of its own: a terminal's Ctrl-C does not reach it.
        assert os.getsid(redis.pid) == redis.pid
        pid = redis.pid
    assert not is_there(pid)
    assert not path.parent.exists()
    with pytest.raises(EmbeddedRedisError, match=r"call start\(\) first"):
        _ = redis.url
    redis.stop()  # stopping twice is stopping once

    redis.start()
    with raw(redis) as client:
        assert client.get("key") == b"value"
    with pytest.raises(EmbeddedRedisError, match="started already"):
        redis.start()
    redis.stop()


def test_a_long_runtime_folder_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, long = tmp_path / "s", tmp_path / ("l" * 90)
    for folder in (short, long):
        folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    with EmbeddedRedis(tmp_path / "data") as redis:
        assert redis.url.startswith("unix:///tmp/")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    if len(os.fsencode(short)) < 70:
        with EmbeddedRedis(tmp_path / "data") as redis:
            assert redis.url.startswith(f"unix://{short}/")
    assert list(long.iterdir()) == list(short.iterdir()) == []


async def test_kill_9_of_the_child_loses_nothing_acknowledged(tmp_path: Path) -> None:
    acknowledged: list[int] = []
    with EmbeddedRedis(tmp_path) as redis:
        url = redis.url

        async def write(store: SessionStore, stop: asyncio.Event, worker: int) -> None:
            while not stop.is_set():
                item = NewItem("demonstration", {"worker": worker})
                try:
                    result = await store.append("t", f"s{worker}", [item])
                except StoreUnavailable:
                    await asyncio.sleep(0.01)
                else:
                    acknowledged.append(worker * 1_000_000 + result.item_ids[0])

        async with await SessionStore.open(url) as store:
            for _ in range(3):
                stop = asyncio.Event()
                before = len(acknowledged)
                writers = [asyncio.create_task(write(store, stop, n)) for n in range(4)]
                while len(acknowledged) < before + 20:
                    await asyncio.sleep(0.01)
                pid = redis.pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                seen = len(acknowledged)
                # The same store goes on by itself when the child is back.
                while len(acknowledged) < seen + 20:
                    await asyncio.sleep(0.01)
                stop.set()
                await asyncio.gather(*writers)
                await asyncio.to_thread(redis.ensure_running)
                assert redis.pid not in (None, pid)
                assert redis.url == url
    with EmbeddedRedis(tmp_path) as redis:
        async with await SessionStore.open(redis.url) as store:
            for worker in range(4):
                items = await store.items("t", f"s{worker}", limit=1_000_000)
                stored = {worker * 1_000_000 + item.id for item in items}
                assert {n for n in acknowledged if n // 1_000_000 == worker} <= stored


def test_it_is_not_tied_to_the_thread_that_started_it(tmp_path: Path) -> None:
    redis = EmbeddedRedis(tmp_path)
    thread = threading.Thread(target=redis.start)
    thread.start()
    thread.join()
    pid = redis.pid
    try:
        with raw(redis) as client:
            for _ in range(20):
                assert client.ping()
                time.sleep(0.01)
        assert redis.pid == pid
    finally:
        redis.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a parent's death")
def test_it_dies_with_a_killed_owner(tmp_path: Path) -> None:
    with owner_process(tmp_path) as (owner, pid, url):
        assert is_there(pid)
        owner.kill()
        owner.wait()
        until(lambda: not is_there(pid))
    runtime = Path(url.removeprefix("unix://")).parent
    assert runtime.exists()
    with EmbeddedRedis(tmp_path) as redis, raw(redis) as client:
        assert not runtime.exists()
        assert client.ping()


def test_it_ends_with_an_owner_that_forgets_to_stop(tmp_path: Path) -> None:
    code = OWNER.replace("time.sleep(600)", "")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    pid, url = done.stdout.split()
    assert not is_there(int(pid))
    assert not Path(url.removeprefix("unix://")).parent.exists()
    assert done.stderr == ""


def test_ctrl_c_reaches_the_owner_only(tmp_path: Path) -> None:
    with owner_process(tmp_path) as (owner, pid, url):
        client = Redis.from_url(url)
        assert os.getpgid(pid) != os.getpgid(owner.pid)
        owner.send_signal(signal.SIGINT)
        owner.wait()
        until(lambda: not is_there(pid))  # stopped by the owner on its way out
        client.close()
    assert "User requested shutdown" in (tmp_path / LOG_NAME).read_text() or (
        "scheduling shutdown" in (tmp_path / LOG_NAME).read_text()
    )


def test_a_second_owner_is_told_who_has_the_folder(tmp_path: Path) -> None:
    with owner_process(tmp_path) as (owner, pid, _):
        second = EmbeddedRedis(tmp_path)
        with pytest.raises(DataFolderLocked, match=rf"\(pid {owner.pid}\)"):
            second.start()
        second.stop()
        assert is_there(pid)
        assert owner.poll() is None
        assert (tmp_path / LOCK_NAME).read_text() == f"{owner.pid}\n"
    with EmbeddedRedis(tmp_path), pytest.raises(DataFolderLocked, match=str(os.getpid())):
        EmbeddedRedis(tmp_path).start()


def test_an_orphan_is_ended_first(tmp_path: Path) -> None:
    """A child whose owner died where nothing tells children: started here by hand."""
    binary = find_binary()
    socket = tmp_path / "run" / "redis.sock"
    socket.parent.mkdir()
    command = [str(binary.path), "--port", "0", "--unixsocket", str(socket), "--save", ""]
    command += ["--appendonly", "yes", "--dir", str(tmp_path)]
    orphan = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        until(lambda: answers(socket))
        with Redis(unix_socket_path=str(socket)) as client:
            client.set("key", "value")
        Record(binary.product, binary.version, str(socket), orphan.pid).write(tmp_path)
        with EmbeddedRedis(tmp_path, stop_timeout_s=600) as redis:
            assert orphan.wait() == 0  # cleanly
            assert not socket.parent.exists()
            with raw(redis) as client:
                assert client.get("key") == b"value"
    finally:
        orphan.kill()
        orphan.wait()


def test_an_orphan_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits_s, ended = iter([0.2, 600.0]), folder_module._ended  # it dies, however slowly

    def wait(pid: int, socket: str, timeout_s: float) -> bool:
        return ended(pid, socket, min(timeout_s, next(waits_s)))

    monkeypatch.setattr(folder_module, "_ended", wait)
    binary = find_binary()
    socket = tmp_path / "redis.sock"
    command = [str(binary.path), "--port", "0", "--unixsocket", str(socket), "--dir", str(tmp_path)]
    orphan = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        until(lambda: answers(socket))
        os.kill(orphan.pid, signal.SIGSTOP)
        Record(binary.product, binary.version, str(socket), orphan.pid).write(tmp_path)
        with EmbeddedRedis(tmp_path, stop_timeout_s=600):
            assert orphan.wait() == -signal.SIGKILL
    finally:
        orphan.kill()
        orphan.wait()


def test_a_stranger_with_the_orphans_pid_is_left_alone(tmp_path: Path) -> None:
    binary = find_binary()
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        Record(binary.product, binary.version, "/tmp/gone/redis.sock", stranger.pid).write(tmp_path)
        with EmbeddedRedis(tmp_path):
            assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_child_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    redis = EmbeddedRedis(tmp_path, stop_timeout_s=0.2)
    redis.start()
    pid = redis.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    redis.stop()
    assert not is_there(pid)


def test_a_fork_of_the_owner_ends_nothing(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as redis:
        forked = os.fork()
        if forked == 0:
            redis.stop()
            os._exit(0)
        os.waitpid(forked, 0)
        assert redis.pid is not None
        with raw(redis) as client:
            assert client.ping()


def test_an_older_server_refuses_the_folder(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as redis, raw(redis) as client:
        client.set("key", "value")
    record = Record.read(tmp_path)
    assert record is not None
    assert record.version == find_binary().version
    Record(record.product, (99, 0, 0), record.socket).write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(RedisServerTooOld, match=r"written by \w+ 99\.0\.0 .* is older"):
        EmbeddedRedis(tmp_path).start()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


@pytest.mark.skipif(find_binary().version >= (7, 0, 0), reason="this server reads such a folder")
def test_a_folder_of_redis_7_without_a_record(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").mkdir()
    with pytest.raises(RedisServerTooOld, match=r"7\.0\.0"):
        EmbeddedRedis(tmp_path).start()


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"version": [1, 2]})])
def test_a_damaged_record(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD_NAME).write_text(text)
    with pytest.raises(EmbeddedRedisError, match="is damaged"):
        EmbeddedRedis(tmp_path).start()


def test_a_child_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "appendonly.aof").write_text("this is no log\n")
    for _ in range(2):  # the folder is free again each time
        with pytest.raises(EmbeddedRedisError, match=r"(?s)ended with status 1; the last lines of"):
            EmbeddedRedis(tmp_path).start()


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedRedisError, match="data folder"):
        EmbeddedRedis(tmp_path / "file").start()


def test_a_child_that_stays_away_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EmbeddedRedis(tmp_path) as redis:
        assert redis.pid is not None
        os.kill(redis.pid, signal.SIGSTOP)
        try:
            with monkeypatch.context() as hasty:
                hasty.setattr(redis, "_start_timeout_s", 0.5)
                with pytest.raises(EmbeddedRedisError, match="does not answer after"):
                    redis.ensure_running()
        finally:
            os.kill(redis.pid, signal.SIGCONT)
        redis.ensure_running()
    with pytest.raises(EmbeddedRedisError, match=r"call start\(\) first"):
        redis.ensure_running()
