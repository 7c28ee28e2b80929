"""How commands reach a Cluster: each goes to the node of its key, and follows it where it moved.

Pipelines of redis-py are not used: one that loses a node does not look for its successor, and one
that is a transaction runs an event loop in a thread. A node's own clock, and its own order of
things, are all there is: what has to happen first is waited for.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from server.sessions.addresses import Address
from server.sessions.link import CONNECTION_WAIT_S, CONNECTIONS_MAX, Command

TOGETHER = """
-- Commands that belong together, each about one key of the session.
-- KEYS[i]  the key of a command
-- ARGV     for each its name, the number of its other words, and these
-- Replies with all their replies.
-- Lua takes some 8,000 values apart at once; of a longer command, an HMGET, as many at a time.
local AT_ONCE = 4000
local replies, at = {}, 1
for i, key in ipairs(KEYS) do
  local name, first, last = ARGV[at], at + 2, at + 1 + tonumber(ARGV[at + 1])
  if name == 'HMGET' and last - first >= AT_ONCE then
    replies[i] = {}
    for from = first, last, AT_ONCE do
      local upto = math.min(from + AT_ONCE - 1, last)
      for n, value in ipairs(redis.call(name, key, unpack(ARGV, from, upto))) do
        replies[i][from - first + n] = value
      end
    end
  else
    replies[i] = redis.call(name, key, unpack(ARGV, first, last))
  end
  at = last + 1
end
return replies
"""


class ClusterLink:
    """Connections to the nodes of a Cluster, for one event loop."""

    def __init__(self, address: Address, *, timeout_s: float) -> None:
        self._client = RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in address.hosts],
            # A redirected command needs a second one for ASKING.
            max_connections=2 * CONNECTIONS_MAX,
            # One slot that moved is learned by itself; learning all anew closes what others use.
            reinitialize_steps=0,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            # Redirections are followed all the same; what failed is never sent again.
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            ssl=address.tls,
            **address.options,
        )
        self._execute: Callable[..., Awaitable[Any]] = self._client.execute_command
        self._places = asyncio.Semaphore(CONNECTIONS_MAX)

    async def one(self, command: Command, **where: Any) -> Any:
        """See `Link.one`."""
        async with asyncio.timeout(CONNECTION_WAIT_S):
            await self._places.acquire()
        try:
            return await self._execute(*command, **where)
        except AttributeError as error:
            # redis-py closed a connection that was being opened, or was sent to a node which it
            # does not know yet: both are None where it goes on.
            raise redis_errors.ConnectionError(f"the Cluster is changing: {error}") from error
        finally:
            self._places.release()

    async def together(self, commands: Sequence[Command], *, atomic: bool) -> list[Any]:
        """See `Link.together`."""
        if not atomic:
            return [await self.one(command) for command in commands]
        words: list[Any] = []
        for name, _, *rest in commands:
            words += [name, len(rest), *rest]
        keys = [command[1] for command in commands]
        replies = await self.one(("EVAL", TOGETHER, len(keys), *keys, *words))
        return [self._parsed(*pair) for pair in zip(commands, replies, strict=True)]

    def _parsed(self, command: Command, reply: Any) -> Any:
        """Give a reply the form that redis-py gives it outside of a script."""
        parse = self._client.response_callbacks.get(str(command[0]))
        return reply if parse is None else parse(reply)

    async def scattered(self, commands: Sequence[Command]) -> list[Any]:
        """See `Link.scattered`."""
        return await _all(self.one(command) for command in commands)

    async def after(self, before: Sequence[Command], command: Command) -> Any:
        """See `Link.after`."""
        await self.scattered(before)
        return await self.one(command)

    async def each_node(self, command: Command) -> list[Any]:
        """See `Link.each_node`."""
        await self._client.initialize()
        nodes = self._client.get_primaries()
        return await _all(self.one(command, target_nodes=[node]) for node in nodes)

    async def aclose(self) -> None:
        """See `Link.aclose`."""
        await self._client.aclose()
        # A client that lost a node waits to look for it anew, and closes nothing then.
        await self._client.nodes_manager.aclose()
        await self._client.nodes_manager.aclose("startup_nodes")


async def _all(calls: Any) -> list[Any]:
    """The results of all calls; where some fail the first failure, after all have ended."""
    replies = await asyncio.gather(*calls, return_exceptions=True)
    for reply in replies:
        if isinstance(reply, BaseException):
            raise reply
    return replies
