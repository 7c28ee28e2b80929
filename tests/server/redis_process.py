"""redis-server processes that belong to no innerloop: alone, as a Cluster, or under a Sentinel."""

import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import redis

from server.sessions.binary import find_binary

SLOTS = 16384
_random = random.SystemRandom()  # not one that every worker seeds alike


class RedisProcess:
    """One redis-server on a port that it keeps; `within` may lead to a network of its own."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        port: int = 0,
        host: str = "127.0.0.1",
        within: Sequence[str] = (),
        **environment: str,
    ) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.host = host
        self.within = within
        self.options = options
        self.environment = environment
        self.binary: Path | None = None  # the usual one
        self.process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis(host, self.port, socket_timeout=60)

    def start(self, *arguments: str) -> None:
        """Start it, again where it was started before, and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        binary = str(self.binary or find_binary().path)
        command = [*self.within, binary, *arguments, "--port", str(self.port)]
        command += ["--bind", self.host, "--dir", str(self.folder), *self.options]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=self.environment or None
            )
        until(self._answers)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "log").read_text()
        try:
            return bool(self.client.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False

    def has_a_log(self) -> bool:
        """Whether its append-only file is whole: not where the first one is yet to be written."""
        told = self.client.info("persistence")
        return not (told["aof_rewrite_in_progress"] or told["aof_rewrite_scheduled"])

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        """End it cleanly, with all it knows on disk."""
        assert self.process is not None
        while self.process.poll() is None:  # it refuses while it writes its first append-only file
            self.signal(signal.SIGTERM)
            time.sleep(0.1)
        self.kill()

    def kill(self) -> None:
        """End it with no warning."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        self.client.close()


@contextmanager
def redis_process(folder: Path, *options: str, **environment: str) -> Iterator[RedisProcess]:
    """One that keeps nothing but what `options` say."""
    one = RedisProcess(folder, "--save", "", *options, **environment)
    try:
        one.start()
        yield one
    finally:
        one.kill()


@contextmanager
def redis_cluster(folder: Path, count: int = 3) -> Iterator[list[RedisProcess]]:
    """A Cluster of primaries that share all slots evenly, each on disk with every write."""
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "15000", "--save", "")
    options += ("--appendonly", "yes", "--appendfsync", "always")
    nodes = [RedisProcess(folder / str(n), *options) for n in range(count)]
    with ExitStack() as stack:
        for number, node in enumerate(nodes):
            stack.callback(node.kill)
            node.start()
            mine = range(number * SLOTS // count, (number + 1) * SLOTS // count)
            node.client.execute_command("CLUSTER", "ADDSLOTS", *mine)
            node.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in nodes[1:]:
            join(node, nodes[0])
        until(lambda: all(_is_whole(node, count) for node in nodes))
        yield nodes


def join(node: RedisProcess, known: RedisProcess) -> None:
    """Have a node join a Cluster; it is known everywhere a moment later."""
    node.client.execute_command("CLUSTER", "MEET", "127.0.0.1", known.port)


def _is_whole(node: RedisProcess, count: int) -> bool:
    told = node.client.cluster("INFO")
    return (told["cluster_state"], told["cluster_known_nodes"]) == ("ok", str(count))


def cluster_url(nodes: Sequence[RedisProcess]) -> str:
    hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
    return f"redis+cluster://{hosts}"


@contextmanager
def migrate_slot(slot: int, source: RedisProcess, target: RedisProcess) -> Iterator[None]:
    """Keep a slot half way; at the end all of it is moved."""
    names = [node.client.cluster("MYID").decode() for node in (source, target)]
    target.client.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[0])
    source.client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[1])
    yield
    while keys := source.client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
        for key in keys:
            source.client.migrate("127.0.0.1", target.port, key, 0, 5000)
    target.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", names[1])
    with suppress(redis.ResponseError):  # who gave its last slot away is a replica already
        source.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", names[1])


def move_slot(slot: int, source: RedisProcess, target: RedisProcess, pause_s: float = 0.0) -> int:
    """Move a slot with its keys one by one, as redis-cli does; returns how many there were."""
    moved = 0
    with migrate_slot(slot, source, target):
        while keys := source.client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1):
            source.client.migrate("127.0.0.1", target.port, keys, 0, 5000)
            moved += 1
            time.sleep(pause_s)
    return moved


def free_port() -> int:
    """A port whose companion, 10000 above, is free for a Cluster's gossip too.

    Below those that the system gives to connections: it may give such a one to any process
    before a server has bound it, and while a server that comes back is away.
    """
    while True:
        port = _random.randrange(10_000, 22_000)
        with socket.socket() as first, socket.socket() as second, suppress(OSError):
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 10_000))
            return port


def until(condition: Callable[[], bool], pause_s: float = 0.05) -> None:
    """Wait for what must come; only a hang fails."""
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(pause_s)
