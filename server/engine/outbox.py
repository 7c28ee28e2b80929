"""The way back from the engine thread to one caller on an event loop.

Knows threads and asyncio; knows nothing about what it carries.
"""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

from server.engine.errors import EngineError

T = TypeVar("T")


class Outbox(Generic[T]):
    """Answers to one request, put on the engine thread and awaited on the caller's event loop."""

    def __init__(self) -> None:
        """Belong to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[T | EngineError] = asyncio.Queue()
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits any more. Safe from every thread."""
        return self._cancelled

    def cancel(self) -> None:
        """Say that nobody waits any more. Safe from every thread."""
        self._cancelled = True

    def put(self, item: T | EngineError) -> None:
        """Hand over an answer, or the error that ends it. Engine thread only."""
        try:
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)
        except RuntimeError:  # the caller's event loop is closed
            self._cancelled = True

    async def get(self) -> T:
        """Await the next answer. Event loop only.

        Raises:
            EngineError: what ended the request.
        """
        item = await self._items.get()
        if isinstance(item, EngineError):
            raise item
        return item
