"""What the parts of the store share: a connection, the keys, and how a session is indexed.

The indexes live on other nodes of a Cluster than the sessions, so they are written beside the
scripts: a session is named there before it is made and again after, and taken out only after it is
gone, with one more look. An index may therefore name a session that is not there, never miss one.
"""

import time
from dataclasses import dataclass

from server.sessions.codec import META_FIELDS, pointer
from server.sessions.connection import Connection
from server.sessions.errors import SessionNotFound
from server.sessions.keys import Keys, quoted, reference
from server.sessions.types import Pointer


@dataclass(frozen=True, slots=True)
class Room:
    """The shared ground of the store's parts."""

    connection: Connection
    keys: Keys

    async def pointer(self, tenant: str, session_id: str) -> Pointer:
        """Read a session's pointer; a session that is not there answers `exists=False`.

        Raises InvalidName, StoreUnavailable, StoreCorrupt.
        """
        key = self.keys.session(tenant, session_id).meta
        fields = await self.connection.read("HMGET", key, *META_FIELDS)
        return pointer(tenant, session_id, fields)

    def announcement(self, tenant: str, session_id: str) -> list[tuple[str | int, ...]]:
        """Commands that name a session in the indexes, to be sent just before it is written."""
        return [
            ("SADD", self.keys.tenants, quoted(tenant)),
            ("SADD", self.keys.index(tenant), quoted(session_id)),
            self.expectation(tenant, session_id),
        ]

    def expectation(self, tenant: str, session_id: str) -> tuple[str | int, ...]:
        """Command that names a session as maybe unfinished, to be sent just before it is so."""
        now_ms = int(time.time() * 1000)
        return ("ZADD", self.keys.pending, now_ms, reference(tenant, session_id))

    async def unindex(self, tenant: str, session_id: str) -> None:
        """Take a deleted session out of the indexes, unless it was made again meanwhile."""
        index, read = self.keys.index(tenant), self.connection.read
        await read("SREM", index, quoted(session_id))
        await read("ZREM", self.keys.pending, reference(tenant, session_id))
        if await read("SCARD", index) == 0:
            await read("SREM", self.keys.tenants, quoted(tenant))
            if await read("SCARD", index) > 0:
                await read("SADD", self.keys.tenants, quoted(tenant))
        if (await self.pointer(tenant, session_id)).exists:
            await self.announce(tenant, session_id)

    async def announce(self, tenant: str, session_id: str) -> None:
        """Name a session that was just made once more, in case a deletion came in between."""
        await self.connection.read_batch(self.announcement(tenant, session_id), atomic=False)


def gone(session_id: str) -> SessionNotFound:
    """Make the error for a session that is not there, or not the one that was read."""
    return SessionNotFound(
        f"there is no session {session_id!r}, or it was deleted meanwhile; "
        "a session begins with its first feedback"
    )
