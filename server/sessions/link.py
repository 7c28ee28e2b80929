"""How commands reach one Redis: directly, or the primary that Sentinels name.

It knows commands and their order, not what they are about; `cluster` does the same for a Cluster.
"""

import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from redis import exceptions as redis_errors
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
)
from redis.backoff import NoBackoff

from server.sessions.addresses import Address

CONNECTIONS_MAX = 64
"""Redis runs one command at a time; more connections would only wait there instead of here."""

CONNECTION_WAIT_S = 10.0
"""Longer than a disk stalls; a request that waits longer is better told to come again."""

SENTINEL_WAIT_S = 1.0
"""One that hangs for so long is passed over. After as long they are asked again who is primary."""

Argument = str | int | bytes
Command = Sequence[Argument]


class Link(Protocol):
    """What a connection needs of Redis, wherever it is. Nothing is ever sent twice."""

    async def one(self, command: Command) -> Any:
        """Run a command on the node of its key."""

    async def together(self, commands: Sequence[Command], *, atomic: bool) -> list[Any]:
        """Run commands in one go, in their order; `atomic` ones begin with a key of one node."""

    async def scattered(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands in any order."""

    async def after(self, before: Sequence[Command], command: Command) -> Any:
        """Run a command after others have succeeded or, on one node, in one go with them."""

    async def each_node(self, command: Command) -> list[Any]:
        """Run a command on every node that takes writes."""

    async def aclose(self) -> None:
        """Close all connections."""


class SingleLink:
    """One Redis at a time, through a pool of connections for one event loop."""

    def __init__(self, address: Address, *, timeout_s: float) -> None:
        self._sentinel: Sentinel | None = None
        common = {
            "max_connections": CONNECTIONS_MAX,
            "timeout": CONNECTION_WAIT_S,
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
            **address.options,
        }
        self.pool: BlockingConnectionPool
        if address.kind == "sentinel":
            wait_s = min(timeout_s, SENTINEL_WAIT_S)
            asking: dict[str, Any] = {
                "socket_timeout": wait_s,
                "socket_connect_timeout": wait_s,
                "protocol": 2,
            }
            asking |= {"retry": Retry(NoBackoff(), 0), "ssl": address.tls}
            asking |= {k: v for k, v in address.options.items() if address.tls and "ssl" in k}
            self._sentinel = Sentinel(
                address.hosts, sentinel_kwargs={**asking, **address.sentinel_options}
            )
            self.pool = _SentinelPool(address.service, self._sentinel, ssl=address.tls, **common)
        else:
            self.pool = BlockingConnectionPool(**common)
        self._client: Redis = Redis.from_pool(self.pool)
        self._execute: Callable[..., Awaitable[Any]] = self._client.execute_command

    async def one(self, command: Command) -> Any:
        """See `Link.one`."""
        return await self._execute(*command)

    async def together(self, commands: Sequence[Command], *, atomic: bool) -> list[Any]:
        """See `Link.together`."""
        async with self._client.pipeline(transaction=atomic) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            try:
                return list(await pipe.execute())
            except redis_errors.ResponseError as error:
                if self._sentinel is not None and "READONLY" in str(error):
                    # A script's error is no ReadOnlyError, at which these connections are closed
                    # by redis-py: they lead to a former primary.
                    await self.pool.disconnect(inuse_connections=False)
                raise

    async def scattered(self, commands: Sequence[Command]) -> list[Any]:
        """See `Link.scattered`."""
        return await self.together(commands, atomic=False)

    async def after(self, before: Sequence[Command], command: Command) -> Any:
        """See `Link.after`; what travels together is synced to disk together."""
        replies = await self.together([*before, command], atomic=False)
        return replies[-1]

    async def each_node(self, command: Command) -> list[Any]:
        """See `Link.each_node`."""
        return [await self.one(command)]

    async def aclose(self) -> None:
        """See `Link.aclose`."""
        await self._client.aclose()
        await self.pool.aclose()
        for sentinel in [] if self._sentinel is None else self._sentinel.sentinels:
            await sentinel.aclose()


class _SentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to whom the Sentinels name; who finds none free waits, as without Sentinels.

    A primary that hung while another took its place wakes up as a primary, and would be read as it
    was. So the Sentinels are asked again, and a connection that leads elsewhere is closed.
    """

    _asked_s = -math.inf

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        if isinstance(connection, SentinelManagedConnection) and connection.is_connected:
            if time.monotonic() - self._asked_s > SENTINEL_WAIT_S:
                self._asked_s = time.monotonic()
                # Where none answers, whom they named last is the best there is.
                with suppress(MasterNotFoundError):
                    await self.get_master_address()
            if (connection.host, connection.port) != self.master_address:
                await connection.disconnect()
        await super().ensure_connection(connection)
