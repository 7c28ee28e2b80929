"""Waiting a while, but not beyond the server's end."""

import asyncio
from contextlib import suppress


async def pause(stopping: asyncio.Event, seconds: float) -> bool:
    """Wait so long, or until ``stopping`` is set; says whether it is."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), seconds)
    return stopping.is_set()
