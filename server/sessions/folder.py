"""The data folder of an embedded Redis: who owns it, who wrote it, who was left running in it.

It knows files and processes, and asks a running server for nothing.
"""

import fcntl
import json
import os
import signal
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from server.sessions.binary import Binary
from server.sessions.errors import DataFolderLocked, EmbeddedRedisError, RedisServerTooOld

RECORD_NAME = "innerloop-redis.json"
LOCK_NAME = "innerloop-redis.lock"
LOG_NAME = "redis.log"
SOCKET_NAME = "redis.sock"

_MULTI_PART_AOF = "appendonlydir"  # what Redis 7 writes and 6.2 does not see


@dataclass(frozen=True, slots=True)
class Record:
    """Who wrote the folder last, and the child that may still run in it."""

    product: str
    version: tuple[int, int, int]
    socket: str
    pid: int | None = None

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read the folder's record; None where there is none. Raises EmbeddedRedisError."""
        path = folder / RECORD_NAME
        try:
            fields: dict[str, Any] = json.loads(path.read_text())
            major, minor, patch = fields.pop("version")
            return cls(**fields, version=(major, minor, patch))
        except FileNotFoundError:
            return None
        except (OSError, TypeError, ValueError, KeyError) as error:
            raise EmbeddedRedisError(
                f"{path} is damaged ({error}); if no redis-server runs in {folder} and the "
                "installed one is not older than the one that wrote it, remove that file"
            ) from error

    def write(self, folder: Path) -> None:
        """Replace the folder's record, whole or not at all."""
        path = folder / RECORD_NAME
        fresh = path.with_suffix(".tmp")
        with fresh.open("w") as file:
            json.dump(asdict(self), file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)


class FolderLock:
    """An exclusive lock that ends with the process, whatever ends the process."""

    def __init__(self, folder: Path) -> None:
        """Take the lock. Raises DataFolderLocked with the pid of whoever holds it."""
        self._file = (folder / LOCK_NAME).open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise DataFolderLocked(
                f"{folder} is in use by another server (pid {holder}): stop that one, or choose "
                "another data folder"
            ) from error
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def release(self) -> None:
        """Let the next one in. The file stays: removing it would let two in at once."""
        self._file.truncate(0)
        self._file.close()


def owner(folder: Path) -> str | None:
    """The pid of the server that holds the folder's lock, `unknown` where it does not say.

    None where nobody does. Raises OSError where the lock may not be read.
    """
    try:
        file = (folder / LOCK_NAME).open()
    except FileNotFoundError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go of with the file
        except BlockingIOError:
            return file.read().strip() or "unknown"
    return None


def check_writer(folder: Path, binary: Binary) -> None:
    """Refuse to open what a newer server wrote. Raises RedisServerTooOld, EmbeddedRedisError."""
    record = Record.read(folder)
    reason = None
    if record is not None:
        reason = binary.refusal(record.product, record.version)
    elif (folder / _MULTI_PART_AOF).exists():
        reason = binary.refusal(binary.product, (7, 0, 0))
    if reason is not None:
        raise RedisServerTooOld(
            f"{folder} is refused: {reason}, so sessions would seem lost. Install the "
            "redis-server that wrote it, or a newer one, or choose another data folder"
        )


def end_orphan(folder: Path, *, timeout_s: float) -> int | None:
    """End the child of an owner that died, and return its pid; None where there is none.

    To be called by the holder of the lock. Raises EmbeddedRedisError when it does not end.
    """
    record = Record.read(folder)
    if record is None:
        return None
    orphan = record.pid if record.pid is not None and _serves(record.pid, record.socket) else None
    if orphan is not None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.kill(orphan, number)
            if _ended(orphan, record.socket, timeout_s):
                break
        else:
            raise EmbeddedRedisError(
                f"redis-server (pid {orphan}) still runs in {folder} after its owner died, and "
                "does not end; end it by hand"
            )
    remove_runtime(Path(record.socket))
    return orphan


def remove_runtime(socket: Path) -> None:
    """Remove a socket and the private folder made for it, where they are still there."""
    socket.unlink(missing_ok=True)
    if socket.parent.is_dir() and not any(socket.parent.iterdir()):
        socket.parent.rmdir()


def _ended(pid: int, socket: str, timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while _serves(pid, socket):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def _serves(pid: int, socket: str) -> bool:
    """Whether the process is there and is a redis-server on this very socket.

    A pid alone proves nothing, numbers are used again; redis-server shows its socket in its title.
    """
    command = Path(f"/proc/{pid}/cmdline")
    try:
        if Path("/proc/self/cmdline").exists():
            title = command.read_bytes()
        else:
            title = subprocess.run(
                ["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, check=False
            ).stdout
    except (FileNotFoundError, ProcessLookupError):
        return False
    return os.fsencode(socket) in title
