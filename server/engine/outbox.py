"""The way back from the engine thread to callers on their event loops.

What one turn of the engine says to everybody is handed over at once: waking a loop takes the
interpreter away from the engine, so it happens once a turn and not once a token. Knows threads and
asyncio; knows nothing about what it carries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from server.engine.errors import EngineError

T = TypeVar("T")
Delivery = Callable[[], None]


class Mail:
    """Answers that wait to be handed over. Engine thread only."""

    def __init__(self) -> None:
        """Have nothing to hand over."""
        self._waiting: dict[asyncio.AbstractEventLoop, list[Delivery]] = {}

    def add(self, loop: asyncio.AbstractEventLoop, delivery: Delivery) -> None:
        """Run ``delivery`` on ``loop`` after the next ``send``."""
        self._waiting.setdefault(loop, []).append(delivery)

    def discard(self) -> None:
        """Hand over nothing of what waits."""
        self._waiting = {}

    def send(self) -> None:
        """Hand everything over. A loop that is closed by now has nobody waiting."""
        for loop, deliveries in self._waiting.items():
            try:
                loop.call_soon_threadsafe(_deliver, deliveries)
            except RuntimeError:
                continue
        self._waiting = {}


def _deliver(deliveries: list[Delivery]) -> None:
    for delivery in deliveries:
        delivery()


class Outbox(Generic[T]):
    """Answers to one request, put on the engine thread and awaited on the caller's event loop."""

    def __init__(self, mail: Mail) -> None:
        """Belong to the running event loop; ``mail`` is the engine's."""
        self._mail = mail
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[T | EngineError] = asyncio.Queue()
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits any more. Safe from every thread."""
        return self._cancelled or self._loop.is_closed()

    def cancel(self) -> None:
        """Say that nobody waits any more. Safe from every thread."""
        self._cancelled = True

    def put(self, item: T | EngineError) -> None:
        """Send an answer with the next mail, or the error that ends it. Engine thread only."""
        self._mail.add(self._loop, lambda: self._items.put_nowait(item))

    async def get(self) -> T:
        """Await the next answer. Event loop only.

        Raises:
            EngineError: what ended the request.
        """
        item = await self._items.get()
        if isinstance(item, EngineError):
            raise item
        return item
