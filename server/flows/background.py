"""Work that no request waits for: jobs, and what a crash left half done.

It knows tasks and their end, not what they do to a session.
"""

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from server.engine import EngineError
from server.flows.rebuilding import Rebuilder
from server.flows.teaching import Teacher
from server.sessions import Pointer, SessionStore, SessionStoreError

logger = logging.getLogger(__name__)

ROUND_S = 15.0
IDLE_S = 30.0
"""Younger work than this is most likely under way, here or on another replica."""


class Background:
    """Owns the tasks. What they cannot finish stays in the log for the next round or start."""

    def __init__(self, teacher: Teacher, rebuilder: Rebuilder, store: SessionStore) -> None:
        self._teacher = teacher
        self._rebuilder = rebuilder
        self._store = store
        self._jobs: set[asyncio.Task[None]] = set()
        self._finisher: asyncio.Task[None] | None = None

    def start(self, *, alone: bool) -> None:
        """Begin to finish pending work: at first all of it, where the server is ``alone``."""
        self._finisher = asyncio.create_task(self._finish_forever(0.0 if alone else IDLE_S))

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Run ``work`` without anybody waiting for it."""
        job = asyncio.create_task(self._run(work, name), name=name)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    async def stop(self, drain_s: float) -> None:
        """Give jobs ``drain_s`` to end, then cancel them."""
        if self._finisher is not None:
            self._finisher.cancel()
            with suppress(asyncio.CancelledError):
                await self._finisher
        if self._jobs:
            await asyncio.wait(self._jobs, timeout=drain_s)
        for job in list(self._jobs):
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)

    async def _finish_forever(self, idle_s: float) -> None:
        while True:
            await self._run(self._finish_all(idle_s), "finishing pending feedback")
            idle_s = IDLE_S
            await asyncio.sleep(ROUND_S)

    async def _finish_all(self, idle_s: float) -> None:
        pointers = await self._store.pending_sessions(idle_s=idle_s)
        if pointers:
            logger.info("finishing pending feedback of %d sessions", len(pointers))
        await asyncio.gather(
            *(self._run(self._finish(pointer), pointer.session_id) for pointer in pointers)
        )

    async def _finish(self, pointer: Pointer) -> None:
        if pointer.unpurged:
            await self._rebuilder.purge(pointer)
        await self._teacher.finish(pointer)

    async def _run(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Nobody waits for this, so the log is where its failure is told."""
        try:
            await work
        except (EngineError, SessionStoreError) as error:
            logger.warning("%s: %s; it is tried again later", name, error)
        except Exception:
            logger.exception("%s failed", name)
