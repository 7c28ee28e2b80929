"""A redis-server of one's own, with the options that a measurement is about."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import BusyLoadingError, ConnectionError

from server.sessions.binary import Binary, find_binary


class Server:
    """One that can be stopped and started on its files."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.binary: Binary = find_binary()
        self._folder = folder
        self._options = options
        # A socket's path must be short, and the folder of the data may be anywhere.
        self._private = tempfile.TemporaryDirectory(prefix="innerloop-")
        socket = f"{self._private.name}/redis.sock"
        self.url = f"unix://{socket}"
        self.client = Redis(unix_socket_path=socket)
        self._command = [str(self.binary.path), "--port", "0", "--unixsocket", socket]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start it; returns the seconds until it answers, its files read."""
        began = time.perf_counter()
        command = [*self._command, "--dir", str(self._folder), "--save", "", *self._options]
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        while True:
            if self._process.poll() is not None:
                raise RuntimeError((self._folder / "redis.log").read_text())
            try:
                self.client.ping()
                return time.perf_counter() - began
            except (BusyLoadingError, ConnectionError):
                time.sleep(0.005)

    def stop(self) -> None:
        """End it cleanly."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None
        self.client.close()

    def rewrite(self) -> float:
        """Have the append-only file rewritten; returns the seconds it took."""
        began = time.perf_counter()
        self.client.bgrewriteaof()
        while self.client.info("persistence")["aof_rewrite_in_progress"]:
            time.sleep(0.02)
        assert self.client.info("persistence")["aof_last_bgrewrite_status"] == "ok"
        return time.perf_counter() - began

    def file_bytes(self) -> int:
        """Bytes of its append-only file, in one part or several."""
        parts = [self._folder / "appendonly.aof", *self._folder.glob("appendonlydir/*")]
        return sum(part.stat().st_size for part in parts if part.is_file())

    def close(self) -> None:
        """Stop it and remove its socket."""
        self.stop()
        self._private.cleanup()


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[Server]:
    folder.mkdir(parents=True, exist_ok=True)
    server = Server(folder, *options)
    try:
        server.start()
        yield server
    finally:
        server.close()
