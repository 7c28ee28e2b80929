"""Real servers to load: `innerloop serve` once or several times on one Redis, behind nginx.

Knows processes; knows nothing of what is asked of them.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from server.sessions.binary import find_binary

ROOT = Path(__file__).parents[2]
READY = re.compile(r"innerloop is ready at (http://\S+) \(model .*\)")
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
HASH = "hash $session consistent;"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Served:
    """A running process; for servers with its address."""

    process: "subprocess.Popen[str]"
    url: str = ""

    def cpu_s(self) -> float:
        """CPU time since its start, seconds, all threads."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / TICKS_PER_S

    def rss_bytes(self) -> int:
        """Memory in use now, bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def one_server(folder: Path, redis_url: str | None = None, **settings: str) -> Iterator[Served]:
    """A server on a port of its own; by default with its embedded Redis.

    Raises:
        RuntimeError: it does not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arguments = ["serve", "--port", "0", "--data-dir", str(folder / "data"), "--threads", "1"]
    if redis_url is not None:
        arguments += ["--redis-url", redis_url]
    paths = f"{ROOT}{os.pathsep}{ROOT / 'server' / 'client'}"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("INNERLOOP_")}
    extra = {f"INNERLOOP_{name.upper()}": value for name, value in settings.items()}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "server.cli", *arguments],
            env={**kept, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **extra},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    with ending(process):
        assert process.stdout is not None
        found = READY.match(process.stdout.readline())
        if found is None:
            raise RuntimeError(f"the server does not start: {(folder / 'log').read_text()}")
        yield Served(process, found[1])


@contextmanager
def one_redis(folder: Path) -> Iterator[tuple[Served, str]]:
    """A Redis that keeps what it acknowledges, as docker/ runs it; with its URL."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(path), "--appendonly", "yes"]
    options += ["--appendfsync", "always", "--save", "", "--logfile", str(folder / "log")]
    process = subprocess.Popen([str(find_binary().path), *options], cwd=folder, text=True)
    with ending(process), redis.Redis(unix_socket_path=str(path)) as client:
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.02)
        yield Served(process), f"unix://{path}"


@contextmanager
def replicas(folder: Path, count: int, by_session: bool) -> Iterator[tuple[str, list[Served]]]:
    """Servers on one Redis behind docker/nginx.conf, a session always at one of them or anywhere.

    Raises:
        RuntimeError: there is no nginx, or something does not start.
    """
    if NGINX is None:
        raise RuntimeError("no nginx on PATH: it stands before several replicas")
    with ExitStack() as stack:
        _, url = stack.enter_context(one_redis(folder / "redis"))
        servers = [
            stack.enter_context(one_server(folder / f"replica-{number}", url))
            for number in range(count)
        ]
        addresses = [server.url.removeprefix("http://") for server in servers]
        yield stack.enter_context(_nginx(folder, addresses, by_session)), servers


@contextmanager
def _nginx(folder: Path, addresses: Sequence[str], by_session: bool) -> Iterator[str]:
    assert NGINX is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = (ROOT / "docker" / "nginx.conf").read_text()
    lines = "".join(f"    server {address} max_fails=0;\n" for address in addresses)
    text = re.sub(r"(    server replica-\w+:8000 max_fails=0;\n)+", lines, text)
    text = text.replace(HASH, HASH if by_session else "random;")
    text = text.replace("listen 8080;", f"listen 127.0.0.1:{port};")
    text = text.replace("/tmp/", f"{folder}/").replace("stderr warn", f"{folder}/error warn")
    config = folder / "nginx.conf"
    config.write_text(text)
    process = subprocess.Popen(
        [NGINX, "-p", str(folder), "-c", str(config), "-e", f"{folder}/error", "-g", "daemon off;"],
        text=True,
    )
    with ending(process):
        while process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    yield f"http://127.0.0.1:{port}"
                    return
            time.sleep(0.02)
        raise RuntimeError(f"nginx does not start: {(folder / 'error').read_text()}")


@contextmanager
def ending(process: "subprocess.Popen[str]") -> Iterator[None]:
    """End a process with the block."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
