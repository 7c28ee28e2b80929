"""Answers to clients that may leave at any moment: server-sent events, and cancelled work.

It knows HTTP's side of a stream, not what is streamed.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from server.api.handlers import ClientLeft, to_problem
from server.api.problems import document_for

Value = TypeVar("Value")

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""No proxy may keep a stream, or hold it back until it is whole."""


def event(
    data: Mapping[str, Any] | BaseModel | str, name: str | None = None, place: str | None = None
) -> str:
    """One server-sent event (HTML Living Standard, 9.2); ``place`` is its id, to resume from."""
    if isinstance(data, BaseModel):
        text = data.model_dump_json(exclude_none=True)
    else:
        text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    head = "" if place is None else f"id: {place}\n"
    head += "" if name is None else f"event: {name}\n"
    return f"{head}data: {text}\n\n"


async def respond(request: Request, events: AsyncGenerator[str, None]) -> StreamingResponse:
    """Stream ``events``; an error before the first of them becomes an ordinary error response.

    An error after that ends the stream with an `error` event that holds the problem document.
    """
    first = await connected(request, _first(events))

    async def body() -> AsyncGenerator[str, None]:
        async with aclosing(events):
            yield first
            try:
                async for text in events:
                    yield text
            except Exception as error:
                yield event(document_for(request, to_problem(error, request)), "error")

    return StreamingResponse(body(), media_type="text/event-stream", headers=HEADERS)


async def connected(request: Request, work: Coroutine[Any, Any, Value]) -> Value:
    """Await ``work``, and cancel it when the client leaves before it is done.

    Raises:
        ClientLeft: it did.
    """
    task = asyncio.create_task(work)
    watch = asyncio.create_task(_left(request))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        for pending in (task, watch):
            pending.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _first(events: AsyncGenerator[str, None]) -> str:
    return await anext(events)


async def _left(request: Request) -> None:
    """Return when the client has gone. The body was read before, so nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
