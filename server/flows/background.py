"""Work that no request waits for: jobs, and what a crash left half done.

It knows tasks and their end, not what they do to a session.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from server.engine import EngineError
from server.flows.pause import pause
from server.flows.rebuilding import Rebuilder
from server.flows.teaching import Teacher
from server.sessions import (
    REPLICA_BEAT_S,
    Pointer,
    Replica,
    SessionStore,
    SessionStoreError,
)

logger = logging.getLogger(__name__)

SWEEP_S = 600.0
"""Looking for unused sessions reads a line of every session there is."""
TAKEOVER_S = 30.0
"""Younger work than this is most likely under way, here or on another replica. Should it be so for
longer, two derive the same, and the second finds it done."""


class Background:
    """Owns the tasks. What they cannot finish stays in the log for the next round or start."""

    def __init__(
        self,
        teacher: Teacher,
        rebuilder: Rebuilder,
        store: SessionStore,
        lifetime_s: int = 0,
        takeover_s: float = TAKEOVER_S,
    ) -> None:
        """Sessions unused for ``lifetime_s`` are deleted; 0 keeps them.

        Feedback that is pending for ``takeover_s``, whoever took it, is finished here.
        """
        self._takeover_s = takeover_s
        self._lifetime_s = lifetime_s
        self._teacher = teacher
        self._rebuilder = rebuilder
        self._store = store
        self._jobs: set[asyncio.Task[None]] = set()
        self._forever: list[asyncio.Task[None]] = []
        # Tasks end by it too: redis-py can turn a cancellation into an error of its own.
        self._stopping = asyncio.Event()
        self._waiting: dict[str, float] = {}  # sessions, by incarnation, that wait since when

    def start(self, replica: Replica | None = None) -> None:
        """Begin to finish pending work: at first all of it, where the server is no ``replica``."""
        self._forever.append(asyncio.create_task(self._finish_forever(replica is None)))
        if replica is not None:
            self._forever.append(asyncio.create_task(self._beat_forever(replica)))
        if self._lifetime_s:
            self._forever.append(asyncio.create_task(self._expire_forever()))

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Run ``work`` without anybody waiting for it."""
        job = asyncio.create_task(self._run(work, name), name=name)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    async def stop(self, drain_s: float) -> None:
        """Give jobs ``drain_s`` to end, then cancel them; cancelled itself, cancel them at once."""
        self._stopping.set()
        for task in self._forever:
            task.cancel()
        try:
            # `await task` and a suppressed CancelledError would swallow our own cancellation too.
            await asyncio.gather(*self._forever, return_exceptions=True)
            if self._jobs:
                await asyncio.wait(self._jobs, timeout=drain_s)
        finally:
            for job in list(self._jobs):
                job.cancel()
            await asyncio.gather(*self._jobs, return_exceptions=True)

    async def _finish_forever(self, alone: bool) -> None:
        idle_s = 0.0 if alone else self._takeover_s
        while not self._stopping.is_set():
            await self._run(self._finish_all(idle_s), "finishing pending feedback")
            idle_s = self._takeover_s
            await pause(self._stopping, self._takeover_s / 2)

    async def _beat_forever(self, replica: Replica) -> None:
        while not self._stopping.is_set():
            await pause(self._stopping, REPLICA_BEAT_S)
            await self._run(replica.beat(), "telling that this replica lives")

    async def _expire_forever(self) -> None:
        while not self._stopping.is_set():
            await self._run(self._expire(), "deleting unused sessions")
            await pause(self._stopping, min(SWEEP_S, self._lifetime_s / 4))

    async def _expire(self) -> None:
        deleted = await self._store.expire(self._lifetime_s)
        if deleted:
            logger.info("deleted %d sessions unused for %d s", deleted, self._lifetime_s)

    async def _finish_all(self, idle_s: float) -> None:
        pointers = await self._store.pending_sessions(idle_s=idle_s)
        unfinished = {pointer.incarnation for pointer in pointers}
        self._waiting = {name: at for name, at in self._waiting.items() if name in unfinished}
        await asyncio.gather(
            *(self._run(self._finish(pointer), pointer.session_id) for pointer in pointers)
        )
        for tenant in await self._store.unswept(idle_s=idle_s):
            await self._run(self._store.sweep(tenant), f"sweeping {tenant}")

    async def _finish(self, pointer: Pointer) -> None:
        if pointer.unpurged:
            await self._rebuilder.purge(pointer)
        if self._waiting.get(pointer.incarnation) == pointer.updated_at:
            return  # looked at before: pinned, or all that is pending is meant to wait
        if not await self._teacher.finish(pointer):
            self._waiting[pointer.incarnation] = pointer.updated_at

    async def _run(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Nobody waits for this, so the log is where its failure is told."""
        try:
            await work
        except (EngineError, SessionStoreError) as error:
            logger.warning("%s: %s; it is tried again later", name, error)
        except Exception:
            logger.exception("%s failed", name)
