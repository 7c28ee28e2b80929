"""What the parts of the store share: a connection, the keys, and how a session is indexed.

The indexes live on other nodes of a Cluster than the sessions, so they are written beside the
scripts: a session is named there before it is made and again after, and taken out only after it is
gone, with one more look. An index may therefore name a session that is not there, never miss one.
"""

from dataclasses import dataclass

from server.sessions import index_scripts, scripts
from server.sessions.codec import META_FIELDS, pointer
from server.sessions.connection import Connection
from server.sessions.errors import SessionNotFound
from server.sessions.keys import Keys, quoted, reference
from server.sessions.types import HOUSE, Pointer


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

    def announcement(
        self, tenant: str, session_id: str, times_ms: tuple[int, int] | None = None
    ) -> list[tuple[str | int, ...]]:
        """Commands that name a session in the indexes, to be sent just before it is written.

        Where it was already, with the times that it was made and last changed.
        """
        times: tuple[str | int, ...] = times_ms or ("", "")
        listed = int(session_id != HOUSE)
        indexes = self.keys.indexes(tenant)
        return [
            ("SADD", self.keys.tenants, quoted(tenant)),
            ("EVAL", index_scripts.ANNOUNCE, 3, *indexes, quoted(session_id), listed, *times),
            self.expectation(tenant, session_id),
        ]

    def expectation(self, tenant: str, session_id: str) -> tuple[str | int, ...]:
        """Command that names a session as maybe unfinished, to be sent just before it is so."""
        return ("EVAL", scripts.EXPECT, 1, self.keys.pending, reference(tenant, session_id))

    def touch(self, tenant: str, session_id: str) -> tuple[str | int, ...]:
        """Command that lists a session as just changed, to be sent just before it is."""
        return ("EVAL", index_scripts.TOUCH, 1, self.keys.updated(tenant), quoted(session_id))

    async def unindex(self, tenant: str, session_id: str) -> None:
        """Take a deleted session out of the indexes, unless it was made again meanwhile."""
        index, read, member = self.keys.index(tenant), self.connection.read, quoted(session_id)
        names, *times = self.keys.indexes(tenant)
        gone: list[tuple[str | int, ...]] = [("SREM", names, member)]
        gone += [("ZREM", key, member) for key in times]
        await self.connection.read_batch(gone, atomic=True)
        await read("ZREM", self.keys.pending, reference(tenant, session_id))
        if await read("SCARD", index) == 0:
            await read("ZREM", self.keys.placed, quoted(tenant))
            await read("SREM", self.keys.tenants, quoted(tenant))
            if await read("SCARD", index) > 0:
                await read("SADD", self.keys.tenants, quoted(tenant))
        pointer = await self.pointer(tenant, session_id)
        if pointer.exists:
            times_ms = milliseconds(pointer.created_at), milliseconds(pointer.updated_at)
            await self.announce(tenant, session_id, times_ms)

    async def announce(self, tenant: str, session_id: str, times_ms: tuple[int, int]) -> None:
        """Name a session that was just made once more, in case a deletion came in between."""
        commands = self.announcement(tenant, session_id, times_ms)
        await self.connection.read_batch(commands, scattered=True)


def milliseconds(at_s: float) -> int:
    """Write a time of a pointer as it is in Redis."""
    return round(at_s * 1000)


def gone(session_id: str) -> SessionNotFound:
    """Make the error for a session that is not there, or not the one that was read."""
    return SessionNotFound(
        f"there is no session {session_id!r}, or it was deleted meanwhile; "
        "a session begins with its first feedback"
    )
