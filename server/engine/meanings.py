"""The gate's encoder, asked before the engine thread needs its answer, on threads of its own.

Questions have one and what is learned or looked at another, a few turns at a time, so that nobody's
question waits for somebody's lesson. Knows encoders; knows nothing about requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from adapters.encoder import Encoder
from server import spans
from server.engine.errors import EngineBusy, EngineStopped
from server.engine.isolation import failure
from server.engine.prefix_cache import Tokens

AT_ONCE: Final = 4  # turns of a lesson, until another one's are encoded


class Meanings:
    """Has prompts encoded; without an encoder there is nothing to do."""

    def __init__(self, encoder: Encoder | None, queue: int) -> None:
        """Start no thread yet. Whoever comes while ``queue`` others wait is turned away."""
        self._encoder = encoder
        self._queue = queue
        self._waiting = 0
        self._asking = ThreadPoolExecutor(1, "innerloop-asking")
        self._learning = ThreadPoolExecutor(1, "innerloop-encoding")
        self._closed = False

    async def of_question(self, prompt: Tokens) -> None:
        """Have a question's meaning known.

        Raises:
            EngineBusy, EngineStopped: not now.
            EngineFailed: the encoder cannot compute it.
        """
        await self._know(self._asking, [prompt])

    async def of_lesson(self, prompts: Sequence[Tokens]) -> None:
        """Have the meanings of prompts known that are learned or looked at.

        Raises:
            As ``of_question``.
        """
        await self._know(self._learning, prompts)

    def close(self) -> None:
        """Turn everybody away who comes or waits; what is being encoded ends by itself."""
        self._closed = True
        for pool in (self._asking, self._learning):
            pool.shutdown(wait=False, cancel_futures=True)

    async def _know(self, pool: ThreadPoolExecutor, prompts: Sequence[Tokens]) -> None:
        if self._encoder is None:
            return
        if self._waiting >= self._queue:
            raise EngineBusy("too many prompts wait to be encoded: try again")
        self._waiting += 1
        try:
            with spans.span("encode"):
                for start in range(0, len(prompts), AT_ONCE):
                    part = prompts[start : start + AT_ONCE]
                    await asyncio.wrap_future(pool.submit(self._encoder.vectors, part))
        except (Exception, asyncio.CancelledError) as error:
            if self._closed:
                raise EngineStopped("the engine is stopping: try again later") from None
            if isinstance(error, asyncio.CancelledError):
                raise
            raise failure("encoding prompts", error) from None
        finally:
            self._waiting -= 1
