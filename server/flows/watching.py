"""A session's log as it grows, for whoever wants to be told what was learned.

It reads the log again and again, so what any replica writes is seen by all, no connection to Redis
is held, and nothing is missed while Redis was away. It knows no HTTP.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from adapters.config import AdapterError
from server.flows.pause import pause
from server.sessions import Event, SessionStore, StoreUnavailable

logger = logging.getLogger(__name__)

WATCHERS_MAX = 256
"""Each asks Redis twice a second and holds a connection of its client's."""
TENANT_WATCHERS_MAX = 128
SESSION_WATCHERS_MAX = 8
"""So that nobody takes all of them."""
POLL_S = 0.5
HEARTBEAT_S = 15.0
"""Proxies close connections that are silent for a minute, often less."""


class TooManyWatchers(AdapterError, RuntimeError):
    """No more logs are watched on this server now."""


@dataclass(frozen=True)
class Deleted:
    """The session is gone; nothing follows."""


@dataclass(frozen=True)
class Standing:
    """Where a watcher begins: the place in the log, and the version in force."""

    position: str
    version: int


class Watching:
    """All watchers of one server, which end when it stops."""

    def __init__(
        self, store: SessionStore, *, most: int = WATCHERS_MAX, heartbeat_s: float = HEARTBEAT_S
    ) -> None:
        """``most`` watch at a time."""
        self._watched: Counter[tuple[str, ...]] = Counter()
        self._store = store
        self._most = most
        self._heartbeat_s = heartbeat_s
        self._stopping = asyncio.Event()

    @property
    def count(self) -> int:
        """Watchers that there are."""
        return self._watched[()]

    def close(self) -> None:
        """End every watcher, and take no more."""
        self._stopping.set()

    async def watch(
        self, tenant: str, session_id: str, after: str | None
    ) -> AsyncGenerator[Standing | Event | Deleted | None, None]:
        """What happens to a session from now on, or ``after`` a place in its log.

        First where it stands; None is a sign of life. A session that is not there yet may come.

        Raises:
            TooManyWatchers; SessionStoreError before the first thing is given.
        """
        bounds = {
            (): self._most,
            (tenant,): TENANT_WATCHERS_MAX,
            (tenant, session_id): SESSION_WATCHERS_MAX,
        }
        for whose, most in bounds.items():
            if self._watched[whose] >= most:
                raise TooManyWatchers(
                    f"{most} listeners are connected already: try again, or ask GET /sessions"
                )
        self._watched.update(bounds.keys())
        try:
            # The place is read before the pointer: what comes in between is told, not skipped.
            position = after or await self._end(tenant, session_id)
            pointer = await self._store.pointer(tenant, session_id)
            yield Standing(position, pointer.version)
            async for told in self._follow(tenant, session_id, position, pointer.incarnation):
                yield told
        finally:
            self._watched.subtract(bounds.keys())
            self._watched += Counter()  # forgets those at 0

    async def _follow(
        self, tenant: str, session_id: str, position: str, incarnation: str
    ) -> AsyncGenerator[Event | Deleted | None, None]:
        silent_since_s = time.monotonic()
        while not await pause(self._stopping, POLL_S):
            try:
                now, events = await self._store.events_after(tenant, session_id, position)
            except StoreUnavailable as error:
                logger.info("a log cannot be read now: %s", error)
                now, events = incarnation, ()
            if incarnation and now != incarnation:
                yield Deleted()
                return
            incarnation = now
            for event in events:
                position, silent_since_s = event.id, time.monotonic()
                yield event
            if time.monotonic() - silent_since_s > self._heartbeat_s:
                silent_since_s = time.monotonic()
                yield None

    async def _end(self, tenant: str, session_id: str) -> str:
        newest = await self._store.events(tenant, session_id, limit=1)
        return newest[0].id if newest else "0-0"
