"""`innerloop serve` as a process of its own, to be killed."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
from redis_process import until
from warm_process import WarmProcess

ROOT = Path(__file__).parents[2]
HANG_S = 600.0  # no machine is so slow
READY = re.compile(r"innerloop is ready at (http://\S+) \(model tiny(?:, \d replicas)?\)\n")


def environment(**extra: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.upper().startswith("INNERLOOP_")}
    return {**kept, "PYTHONPATH": str(ROOT), "INNERLOOP_THREADS": "1", **extra}


def command(*args: str | int | Path) -> list[str]:
    return [sys.executable, "-m", "server.cli", *map(str, args)]


def run(*args: str | Path, **extra: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*args),
        env=environment(**extra),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )


class Server:
    """A running `innerloop serve`."""

    def __init__(
        self, process: "subprocess.Popen[bytes] | WarmProcess", told: Path, log: Path, data: Path
    ) -> None:
        self.process = process
        self._told = told
        self._data = data
        until(lambda: told.read_text().endswith("\n") or process.poll() is not None)
        self._line = told.read_text()
        found = READY.fullmatch(self._line)
        assert found, f"not ready: {self._line!r}\n{log.read_text()}"
        # A connection that is closed just as a test sends something on it is no answer.
        unshared = httpx.Limits(max_keepalive_connections=0)
        self.http = httpx.Client(base_url=found[1], timeout=HANG_S, limits=unshared)

    @property
    def redis_pid(self) -> int:
        """The child's process id, from the file that the data folder keeps."""
        record = next(self._data.glob("*.json"))
        return int(json.loads(record.read_text())["pid"])

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(timeout=HANG_S)
        self.http.close()
        assert self._told.read_text() == self._line  # one line and no more
        return code


@contextmanager
def serving(
    model: Path, data: Path, port: int = 0, *, warm: bool = True, **extra: str
) -> Iterator[Server]:
    """Start a server, and kill it at the end; one that is not `warm` as a user's shell does."""
    told, log = data.parent / "told", data.parent / "log"
    told.write_text("")
    arguments = ["serve", "--model", model, "--port", port, "--data-dir", data]
    process = _start(arguments, environment(**extra), told, log, warm)
    try:
        yield Server(process, told, log, data)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _start(
    arguments: Sequence[str | int | Path], env: dict[str, str], told: Path, log: Path, warm: bool
) -> "subprocess.Popen[bytes] | WarmProcess":
    if warm:
        return WarmProcess([str(one) for one in arguments], env, ROOT, told, log)
    with told.open("wb") as stdout, log.open("wb") as stderr:
        return subprocess.Popen(
            command(*arguments),
            env=env,
            cwd=ROOT,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )


def gone(pid: int) -> bool:
    """Whether a process ends; one that does not is a hang."""

    def ended() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    until(ended)
    return True
