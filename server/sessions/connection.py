"""One connection pool to Redis, with every failure in our words.

It knows commands and scripts, not sessions. Reads are tried again for a moment, because an embedded
child that died is back within a fraction of a second; writes never are, because a write whose reply
was lost may have happened.
"""

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from server.sessions.errors import StoreCorrupt, StoreRefused, StoreUnavailable
from server.sessions.keys import SCHEMA, Keys

READ_RETRY_PAUSES_S = (0.05, 0.2, 0.5)

CONNECTIONS_MAX = 64
"""Redis runs one command at a time; more connections would only wait there instead of here."""

CONNECTION_WAIT_S = 10.0
"""Longer than a disk stalls; a request that waits longer is better told to come again."""

Argument = str | int | bytes

# At the start of an error, or after the "-" that a script's error puts before it.
_AWAY = re.compile(
    r"(?:^|-)(?:BUSY|CLUSTERDOWN|LOADING|MASTERDOWN|MISCONF|NOREPLICAS|OOM|READONLY|TRYAGAIN)\b"
)
_UNAVAILABLE = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.OutOfMemoryError,
    redis_errors.ReadOnlyError,
    redis_errors.NoPermissionError,
    redis_errors.ClusterError,
    redis_errors.TryAgainError,
    OSError,
)


class Connection:
    """A pool of connections for one event loop. Replies are bytes, undecoded."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS_MAX,
                timeout=CONNECTION_WAIT_S,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
        except ValueError as error:
            raise StoreRefused(f"Redis URL: {error}") from error
        self._client: Redis = Redis.from_pool(pool)
        self._execute: Callable[..., Awaitable[Any]] = self._client.execute_command

    async def read(self, *command: Argument) -> Any:
        """Run a command that changes nothing, or that may safely happen twice.

        Raises StoreUnavailable, StoreCorrupt.
        """
        return await self._patiently(lambda: self._execute(*command))

    async def read_batch(self, commands: Sequence[Sequence[Argument]], *, atomic: bool) -> Any:
        """Run several such commands in one go; `atomic` needs all keys on one node.

        Raises StoreUnavailable, StoreCorrupt.
        """
        return await self._patiently(lambda: self._batch(commands, atomic=atomic))

    async def write(self, *command: Argument) -> Any:
        """Run a command once. Raises StoreUnavailable, StoreCorrupt."""
        with translated():
            return await self._execute(*command)

    async def run(
        self,
        script: str,
        keys: Sequence[str],
        args: Sequence[Argument],
        *,
        before: Sequence[Sequence[Argument]] = (),
    ) -> Sequence[Any]:
        """Run a script of `scripts` once, and commands `before` it in the same round trip.

        What travels together is synced to disk together. The script goes by its text, a few kB:
        by its hash it might be unknown, and the commands before it would have happened.
        Raises StoreUnavailable, StoreCorrupt.
        """
        command = ("EVAL", script, len(keys), *keys, *args)
        with translated():
            replies: Sequence[Sequence[Any]] = await self._batch([*before, command], atomic=False)
        return replies[-1]

    async def _patiently(self, command: Callable[[], Awaitable[Any]]) -> Any:
        for pause_s in READ_RETRY_PAUSES_S:
            try:
                with translated():
                    return await command()
            except StoreUnavailable as error:
                if isinstance(error.__cause__, redis_errors.TimeoutError):
                    raise  # it has had its time
                await asyncio.sleep(pause_s)
        with translated():
            return await command()

    async def _batch(self, commands: Sequence[Sequence[Argument]], *, atomic: bool) -> Any:
        async with self._client.pipeline(transaction=atomic) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return await pipe.execute()

    async def check_database(self, keys: Keys) -> str:
        """Mark an empty database as ours, refuse one that is not; return the deployment's name.

        Raises StoreRefused, StoreUnavailable, StoreCorrupt.
        """

        await self.read("SET", keys.schema, SCHEMA, "NX")
        await self.read("SET", keys.deployment, secrets.token_hex(8), "NX")
        schema: bytes = await self.read("GET", keys.schema)
        deployment: bytes = await self.read("GET", keys.deployment)
        if schema != str(SCHEMA).encode():
            raise StoreRefused(
                f"{keys.schema} in Redis is {schema.decode(errors='replace')!r} and this server "
                f"knows schema {SCHEMA} only: run the server version that wrote it, or give this "
                "one another Redis database or data folder"
            )
        await self._check_eviction()
        return deployment.decode()

    async def _check_eviction(self) -> None:
        try:
            memory = await self.write("INFO", "memory")
        except StoreUnavailable as error:
            if isinstance(error.__cause__, redis_errors.NoPermissionError):
                return  # an access list without INFO: the policy cannot be known
            raise
        policy = str(memory.get("maxmemory_policy", "noeviction"))
        if policy.startswith("allkeys"):
            raise StoreRefused(
                f"Redis has maxmemory-policy {policy} and would throw sessions away when it is "
                "full: set it to noeviction (or volatile-ttl)"
            )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()


@contextmanager
def translated() -> Iterator[None]:
    """Turn what redis-py raises into StoreUnavailable or StoreCorrupt."""
    try:
        yield
    except _UNAVAILABLE as error:
        raise _unavailable(error) from error
    except redis_errors.ResponseError as error:
        text = str(error)
        if "WRONGTYPE" not in text and _AWAY.search(text):
            raise _unavailable(error) from error
        raise StoreCorrupt(
            f"Redis holds under one of our keys what this server never writes ({text}); "
            "delete the session, or restore Redis from a copy"
        ) from error
    except redis_errors.RedisError as error:
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> StoreUnavailable:
    return StoreUnavailable(
        f"Redis cannot answer now ({type(error).__name__}: {error}); try again in a moment"
    )
