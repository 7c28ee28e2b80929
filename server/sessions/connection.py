"""The connection to Redis, with every failure in our words.

It knows commands and scripts, not sessions, and leaves to `link` and `cluster` where Redis is.
Reads are tried again for a moment, because an embedded child that died is back within a fraction
of a second; writes never are, because a write whose reply was lost may have happened.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import urlsplit

from redis import exceptions as redis_errors

from server import spans
from server.sessions.addresses import parse_address
from server.sessions.cluster import ClusterLink
from server.sessions.confirmation import CONFIRMATION_WAIT_S, Confirmation
from server.sessions.errors import StoreCorrupt, StoreRefused, StoreUnavailable
from server.sessions.keys import Keys
from server.sessions.link import Argument, Command, Link, SingleLink
from server.sessions.outage import OutageLog, told_to_callers, without, without_command

logger = logging.getLogger(__name__)

READ_RETRY_PAUSES_S = (0.05, 0.2, 0.5)

CLOCKS_APART_S = 5.0

CLOCK = "return redis.call('TIME')"
"""A script, because it runs on the node of its key: `TIME` has none, and nodes' clocks differ."""

# At the start of an error, after the "-" that a script's error puts before it, or in what redis-py
# says about a pipeline.
_AWAY = re.compile(
    r"(?:^|-|caused error: \(?['\"]?)"
    r"(?:BUSY|CLUSTERDOWN|LOADING|MASTERDOWN|MISCONF|NOREPLICAS|OOM|READONLY|TRYAGAIN)\b"
    # A script that reached for a key which a Cluster is moving; it had not written yet.
    r"|non local key"
    r"|WAITAOF cannot be used"  # its append-only file was switched off
)
_UNAVAILABLE = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.OutOfMemoryError,
    redis_errors.ReadOnlyError,
    redis_errors.NoPermissionError,
    redis_errors.ClusterError,
    redis_errors.RedisClusterException,
    redis_errors.TryAgainError,
    OSError,
)


class Connection:
    """A pool of connections for one event loop. Replies are bytes, undecoded."""

    def __init__(
        self, url: str, *, timeout_s: float, replicas: int = 0, fsync: bool = False
    ) -> None:
        """`replicas` of Redis have to have what `run` wrote, and with `fsync` the disk of the
        primary, or it raises StoreUnavailable.

        Raises StoreRefused for a URL that is none, and for either of a Cluster.
        """
        self.address = parse_address(url)
        if replicas and self.address.kind == "cluster":
            raise StoreRefused(
                "INNERLOOP_REDIS_REPLICAS is for one Redis with replicas; on the nodes of a "
                "Cluster set min-replicas-to-write instead"
            )
        if fsync and self.address.kind == "cluster":
            raise StoreRefused(
                "INNERLOOP_REDIS_FSYNC is for one Redis; on the nodes of a Cluster set "
                "appendfsync always instead"
            )
        self._confirmation = Confirmation(
            replicas, fsync, int(1000 * min(CONFIRMATION_WAIT_S, timeout_s / 2))
        )
        self.link: Link
        try:
            if self.address.kind == "cluster":
                self.link = ClusterLink(self.address, timeout_s=timeout_s)
            else:
                self.link = SingleLink(self.address, timeout_s=timeout_s)
        except (TypeError, redis_errors.RedisError, redis_errors.RedisClusterException) as error:
            raise StoreRefused(f"Redis URL: {error}") from error
        self._outages = OutageLog(self.address.passwords)
        self.ahead_s = 0.0
        """How far the clock of Redis is before ours, as `check_clock` found it last."""

    async def read(self, *command: Argument) -> Any:
        """Run a command that changes nothing, or that may safely happen twice.

        Raises StoreUnavailable, StoreCorrupt.
        """
        return await self._patiently(lambda: self._one(command))

    async def read_batch(
        self, commands: Sequence[Command], *, atomic: bool = False, scattered: bool = False
    ) -> Any:
        """Run several such commands in one go, in their order unless `scattered`.

        `atomic` ones each begin with a key, all of one node. Raises StoreUnavailable, StoreCorrupt.
        """

        def send() -> Awaitable[Any]:
            if scattered:
                return self.link.scattered(commands)
            return self.link.together(commands, atomic=atomic)

        return await self._patiently(lambda: self._traced(commands, send))

    async def write(self, *command: Argument) -> Any:
        """Run a command once. Raises StoreUnavailable, StoreCorrupt."""
        with self._told(), translated():
            return await self._one(command)

    async def run(
        self,
        script: str,
        keys: Sequence[str],
        args: Sequence[Argument],
        *,
        before: Sequence[Command] = (),
        confirmed: bool = True,
    ) -> Sequence[Any]:
        """Run a script of `scripts` once, and commands `before` it in the same round trip.

        What travels together is synced to disk together. The script goes by its text, a few kB:
        by its hash it might be unknown, and the commands before it would have happened. Unless it
        need not be `confirmed`, the disk and as many replicas of Redis have it as are asked for.
        Raises StoreUnavailable, StoreCorrupt.
        """
        command = ("EVAL", script, len(keys), *keys, *args)
        waits = self._confirmation.waits if confirmed else ()
        commands = [*before, command, *waits]

        def send() -> Awaitable[Any]:
            if waits:
                return self.link.together(commands, atomic=False)
            return self.link.after(before, command)

        with self._told(), translated():
            reply = await self._traced(commands, send)
        if not waits:
            return cast(Sequence[Any], reply)
        self._confirmation.check(reply[-len(waits) :])
        return cast(Sequence[Any], reply[-1 - len(waits)])

    async def check_fsync(self) -> None:
        """See whether Redis can be asked for what `fsync` wants. Raises StoreRefused,
        StoreUnavailable."""
        if not self._confirmation.fsync:
            return
        with self._told():
            try:
                await self.link.one(("WAITAOF", 1, 0, 1))
            except (redis_errors.ResponseError, redis_errors.NoPermissionError) as error:
                hint = "this Redis cannot be asked for it"
                if "unknown command" in str(error):
                    hint = "WAITAOF came with Redis 7.2 and Valkey 7.2, and this one is older"
                elif "appendonly" in str(error):
                    hint = "this Redis has no append-only file: set appendonly yes"
                raise StoreRefused(
                    f"INNERLOOP_REDIS_FSYNC: {hint} ({error}). Without it set appendfsync always "
                    "for the same"
                ) from error
            except _UNAVAILABLE as error:
                raise _unavailable(error) from error
        for config in await self.asked("CONFIG", "GET", "appendfsync") or ():
            if b"no" in config:
                raise StoreRefused(
                    "INNERLOOP_REDIS_FSYNC: this Redis leaves syncing to its machine, with "
                    "appendfsync no, and cannot tell when: set everysec"
                )

    async def _patiently(self, command: Callable[[], Awaitable[Any]]) -> Any:
        with self._told():
            for pause_s in READ_RETRY_PAUSES_S:
                try:
                    with translated():
                        return await command()
                except StoreUnavailable as error:
                    if _timed_out(error.__cause__):
                        raise  # it has had its time
                    await asyncio.sleep(pause_s)
            with translated():
                return await command()

    async def _one(self, command: Command) -> Any:
        return await self._traced([command], lambda: self.link.one(command))

    async def _traced(self, commands: Sequence[Command], send: Callable[[], Awaitable[Any]]) -> Any:
        names = " ".join(dict.fromkeys(str(command[0]) for command in commands))
        named = {"db.system.name": "redis", "db.operation.name": names}
        with spans.span("redis", **named):
            return await send()

    async def now(self, key: str) -> float:
        """The time, in seconds, by the clock of the node that has a key.

        Raises StoreUnavailable, StoreCorrupt.
        """
        return seconds(await self.read(*clock_of(key)))

    async def check_clock(self, keys: Keys) -> None:
        """Compare the clocks, and say so where they are apart. Raises StoreUnavailable."""
        before_s = time.time()
        at_s = await self.now(keys.pending)
        ahead_s = at_s - (before_s + time.time()) / 2
        if abs(ahead_s) > CLOCKS_APART_S and abs(ahead_s - self.ahead_s) > CLOCKS_APART_S:
            logger.warning(
                "this machine's clock and that of Redis are %.1f s apart: times in logs and traces "
                "do not fit together; have both follow NTP",
                abs(ahead_s),
            )
        self.ahead_s = ahead_s

    async def ping(self) -> None:
        """Return when Redis answers, in a Cluster every node. Raises StoreUnavailable."""
        with self._told(), translated():
            await self.link.each_node(("PING",))

    async def asked(self, *command: Argument) -> list[Any] | None:
        """What each node says; None where an access list forbids to ask, so it cannot be known.

        Raises StoreUnavailable, StoreCorrupt.
        """
        with self._told(), translated():
            try:
                return await self.link.each_node(command)
            except redis_errors.NoPermissionError:
                return None

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Log what makes Redis unavailable: whoever asked is told no details."""
        try:
            yield
        except StoreUnavailable as error:
            self._outages.tell(error.__cause__ or error)
            raise

    async def aclose(self) -> None:
        """Close all connections."""
        await self.link.aclose()


async def silence(url: str, *, timeout_s: float) -> str | None:
    """Why the Redis at a URL does not answer, without its password; None where it does."""
    unread = "the URL cannot be read: percent-encode what is no letter or digit in its password"
    parts = urlsplit(url)
    if parts.scheme != "unix" and "@" in parts.path + parts.query + parts.fragment:
        return unread  # a part of the password would be taken for the host or the port
    try:
        connection = Connection(url, timeout_s=timeout_s)
    except StoreRefused:
        return unread
    try:
        with translated():  # not `ping`: whoever asks for the reason is its log
            await connection.link.each_node(("PING",))
    except (StoreUnavailable, StoreCorrupt) as error:
        told = str(error.__cause__) or type(error.__cause__).__name__
        return without(connection.address.passwords, told)
    finally:
        await connection.aclose()
    return None


def clock_of(key: str) -> Command:
    """Command for the time of the node that has a key, to be read by `seconds`."""
    return ("EVAL", CLOCK, 1, key)


def seconds(reply: Sequence[bytes]) -> float:
    """Read the reply of `clock_of`."""
    return int(reply[0]) + int(reply[1]) / 1e6


def _timed_out(error: BaseException | None) -> bool:
    """Whether it waited as long as it may, for an answer or for a connection."""
    waited = (redis_errors.TimeoutError, TimeoutError)
    return error is not None and (isinstance(error, waited) or isinstance(error.__cause__, waited))


@contextmanager
def translated() -> Iterator[None]:
    """Turn what redis-py raises into StoreUnavailable or StoreCorrupt."""
    try:
        yield
    except _UNAVAILABLE as error:
        raise _unavailable(error) from error
    except redis_errors.AskError as error:
        raise StoreRefused(
            f"this Redis is a node of a Cluster ({error}): give its URL as redis+cluster://"
        ) from error
    except redis_errors.ResponseError as error:
        text = str(error)
        if "WRONGTYPE" not in text and _AWAY.search(text):
            raise _unavailable(error) from error
        raise StoreCorrupt(
            "Redis holds under one of our keys what this server never writes "
            f"({without_command(error)}); "
            "delete the session, or restore Redis from a copy"
        ) from error
    except redis_errors.RedisError as error:
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> StoreUnavailable:
    return StoreUnavailable(told_to_callers(error))
