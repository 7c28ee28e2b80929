"""Several answers to one question, written at the same time.

It knows streams and seeds, and nothing about what is answered.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TypeVar

from server.engine import Sampling

Piece = TypeVar("Piece")


def several(sampling: Sampling, count: int) -> list[Sampling]:
    """The same sampling for ``count`` answers, each with dice of its own.

    The first answer keeps the seed, so that asking for more of them does not change it.
    """
    seed = sampling.seed
    if seed is None:
        return [sampling] * count
    return [sampling] + [replace(sampling, seed=_derived(seed, n)) for n in range(1, count)]


async def merged(
    streams: Sequence[AsyncGenerator[Piece, None]],
) -> AsyncGenerator[tuple[int, Piece], None]:
    """The pieces of all streams as they come, each with its stream's number.

    What one of them raises ends all, and so does closing this.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as pieces:
            async for piece in pieces:
                yield 0, piece
        return
    queue: asyncio.Queue[tuple[int, Piece] | Exception | None] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(n, one, queue)) for n, one in enumerate(streams)]
    going = len(tasks)
    try:
        while going:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                going -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    number: int,
    stream: AsyncGenerator[Piece, None],
    queue: "asyncio.Queue[tuple[int, Piece] | Exception | None]",
) -> None:
    try:
        async with aclosing(stream):
            async for piece in stream:
                queue.put_nowait((number, piece))
    except Exception as error:  # whoever reads the queue raises it
        queue.put_nowait(error)
    else:
        queue.put_nowait(None)


def _derived(seed: int, number: int) -> int:
    """A seed that follows from another, 63 bits."""
    digest = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
