"""One lock per session inside this process, held only while somebody uses it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class SessionLocks:
    """Lets one derivation of a session run at a time.

    Promotion is safe without it, by version check; the lock saves work that would lose that race.
    """

    def __init__(self) -> None:
        self._locks: dict[tuple[str, str], tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def hold(self, tenant: str, session_id: str) -> AsyncIterator[None]:
        """Hold the lock of one session; forget the lock after its last user."""
        name = (tenant, session_id)
        lock, users = self._locks.get(name, (asyncio.Lock(), 0))
        self._locks[name] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(name)
            if users > 1:
                self._locks[name] = (lock, users - 1)
