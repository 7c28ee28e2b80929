"""A real redis-server as a child process: the default where nobody gave a URL.

It listens on a Unix socket in a private folder and on no port, and syncs every write to disk before
it answers. It is started again when it dies, and ended when its owner ends or is killed. This file
knows processes, not sessions. Its calls block: inside an event loop use `asyncio.to_thread`.
"""

import atexit
import logging
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.retry import Retry

from server.sessions import launch
from server.sessions.binary import Binary, find_binary
from server.sessions.errors import EmbeddedRedisError
from server.sessions.folder import (
    LOG_NAME,
    SOCKET_NAME,
    FolderLock,
    Record,
    check_writer,
    end_orphan,
    remove_runtime,
)

log = logging.getLogger(__name__)

SOCKET_PATH_MAX_BYTES = 103
"""sockaddr_un holds 108 bytes on Linux and 104 on macOS, the ending zero included."""

RESTART_PAUSE_MIN_S = 0.05
RESTART_PAUSE_MAX_S = 5.0
_POLL_S = 0.01


class EmbeddedRedis:
    """One redis-server on one data folder: `with EmbeddedRedis(folder) as redis: redis.url`.

    `start_timeout_s` bounds the wait for a server that does not answer at all (loading a long log
    has no bound); `stop_timeout_s` the wait for a clean end before it is killed.
    """

    def __init__(
        self,
        data_dir: Path | str,
        *,
        binary: Binary | None = None,
        start_timeout_s: float = 30.0,
        stop_timeout_s: float = 10.0,
    ) -> None:
        self.data_dir = Path(data_dir).absolute()
        self._binary = binary
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._owner_pid = os.getpid()
        self._lock: FolderLock | None = None
        self._socket: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._supervisor: threading.Thread | None = None
        self._stopping = threading.Event()
        self._ready = threading.Event()  # it answered once, so it is worth starting again
        self._failure: str | None = None  # of the last attempt to start

    @property
    def url(self) -> str:
        """The URL for `SessionStore.open`; it stays the same when the child is started again."""
        if self._socket is None:
            raise EmbeddedRedisError("the embedded Redis is not started: call start() first")
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is no child."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Take the folder, end what a dead owner left in it, start the child and wait for it.

        Raises DataFolderLocked, RedisServerMissing, RedisServerTooOld, EmbeddedRedisError.
        """
        if self._lock is not None:
            raise EmbeddedRedisError("the embedded Redis is started already")
        binary = self._binary or find_binary()
        self._owner_pid = os.getpid()
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = FolderLock(self.data_dir)
        except OSError as error:
            if isinstance(error, EmbeddedRedisError):
                raise
            raise EmbeddedRedisError(f"data folder {self.data_dir}: {error}") from error
        atexit.register(self.stop)
        try:
            self._open(binary)
            self.ensure_running()
        except BaseException:
            self.stop()
            raise

    def _open(self, binary: Binary) -> None:
        check_writer(self.data_dir, binary)
        orphan = end_orphan(self.data_dir, timeout_s=self._stop_timeout_s)
        if orphan is not None:
            log.warning("ended redis-server pid %d, left behind by a server that died", orphan)
        self._stopping.clear()
        self._ready.clear()
        self._failure = None
        self._socket = _private_socket()
        self._supervisor = threading.Thread(
            target=self._supervise, args=(binary,), name="embedded-redis", daemon=True
        )
        self._supervisor.start()

    def ensure_running(self) -> None:
        """Wait until the child answers, also while it is being started again.

        Raises EmbeddedRedisError when it does not, with the last lines of its log.
        """
        if self._socket is None:
            raise EmbeddedRedisError("the embedded Redis is not started: call start() first")
        deadline_s = time.monotonic() + self._start_timeout_s
        while True:
            state = _state(self._socket)
            if state == "ready" and self.pid is not None:  # not the one that is just dying
                self._ready.set()
                return
            if state == "loading":
                deadline_s = time.monotonic() + self._start_timeout_s
            if self._failure is not None and not self._ready.is_set():
                raise EmbeddedRedisError(self._failure)
            if time.monotonic() > deadline_s:
                raise EmbeddedRedisError(
                    f"redis-server does not answer after {self._start_timeout_s:g} s; "
                    + self._log_tail()
                )
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End the child cleanly and give the folder free; does nothing when not started."""
        if self._owner_pid != os.getpid():
            return  # a fork of the owner, ending, must not end the owner's child
        atexit.unregister(self.stop)
        self._stopping.set()
        if self._supervisor is not None:
            self._end_child(self._supervisor)
            self._supervisor = None
        if self._socket is not None:
            remove_runtime(self._socket)
            self._socket = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _end_child(self, supervisor: threading.Thread) -> None:
        deadline_s = time.monotonic() + self._stop_timeout_s
        asked = None
        while supervisor.is_alive():
            process = self._process
            if process is not None and process is not asked:
                # SIGTERM is SHUTDOWN: with no save points it syncs the log and ends.
                process.terminate()
                asked = process
            if process is not None and time.monotonic() > deadline_s:
                log.error("redis-server pid %d does not end; killing it", process.pid)
                process.kill()
                deadline_s = math.inf
            supervisor.join(timeout=_POLL_S)

    def _supervise(self, binary: Binary) -> None:
        """Keep a child running. This thread starts it and lives as long: see `launch`."""
        pause_s = RESTART_PAUSE_MIN_S
        while not self._stopping.is_set():
            started_s = time.monotonic()
            try:
                self._run_child(binary)
            except OSError as error:
                self._failure = f"redis-server ({binary.path}) does not start: {error}"
            if self._stopping.is_set() or not self._ready.is_set():
                return
            log.error("%s", self._failure)
            if time.monotonic() - started_s > RESTART_PAUSE_MAX_S:
                pause_s = RESTART_PAUSE_MIN_S
            self._stopping.wait(pause_s)
            pause_s = min(2 * pause_s, RESTART_PAUSE_MAX_S)

    def _run_child(self, binary: Binary) -> None:
        record = Record(binary.product, binary.version, str(self._socket))
        record.write(self.data_dir)
        with (self.data_dir / LOG_NAME).open("ab") as output:
            process = subprocess.Popen(
                self._command(binary),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.data_dir,
                start_new_session=True,  # a terminal's Ctrl-C is for the server to handle
            )
        self._process = process
        try:
            Record(record.product, record.version, record.socket, process.pid).write(self.data_dir)
        except OSError:
            process.terminate()
            raise
        finally:
            code = process.wait()
        self._failure = f"redis-server ended with status {code}; " + self._log_tail()

    def _command(self, binary: Binary) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self.data_dir),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "daemonize": "no",
            "logfile": "",
        }
        launcher = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid())]
        command = [*launcher, str(binary.path)]
        for name, value in options.items():
            command += [f"--{name}", value]
        return command

    def _log_tail(self) -> str:
        path = self.data_dir / LOG_NAME
        if not path.exists():
            return f"it wrote no {path}"
        lines = path.read_text(errors="replace").splitlines()[-5:]
        return f"the last lines of {path}:\n" + "\n".join(lines)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _private_socket() -> Path:
    """Make a folder that nobody else may enter, with a path short enough for a socket in it."""
    for parent in (os.environ.get("XDG_RUNTIME_DIR"), "/tmp", tempfile.gettempdir()):
        if not parent or not os.path.isdir(parent) or not os.access(parent, os.W_OK | os.X_OK):
            continue
        length_bytes = len(os.fsencode(parent)) + len(f"/innerloop-12345678/{SOCKET_NAME}")
        if length_bytes <= SOCKET_PATH_MAX_BYTES:
            return Path(tempfile.mkdtemp(prefix="innerloop-", dir=parent)) / SOCKET_NAME
    raise EmbeddedRedisError(
        "there is no writable folder with a path short enough for a socket: "
        "set XDG_RUNTIME_DIR or TMPDIR to one"
    )


def _state(socket: Path) -> str:
    """Ask the child how it is: "ready", "loading" or "away"."""
    client = Redis(
        unix_socket_path=str(socket), socket_timeout=1.0, retry=Retry(NoBackoff(), 0), protocol=2
    )
    try:
        ask: Callable[[str], object] = client.execute_command
        ask("PING")
    except BusyLoadingError:
        return "loading"
    except (RedisError, OSError):
        return "away"
    finally:
        client.close()
    return "ready"
