"""One HTTP request as a value that can be sent to another process, and its answer as it comes.

It knows ASGI (HTTP Message Format, 2.3), not who carries what: `server.scale` does, with Ray.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from starlette.types import ASGIApp, Message, Scope

Messages = list[Message]
"""Some of an answer, as ASGI has it."""

logger = logging.getLogger(__name__)

LEAVE_S: Final = 5.0
"""What an application gets to notice that its client has gone, seconds; then it is cancelled."""
KEPT: Final = (
    *("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string"),
    *("root_path", "headers", "client", "server"),
)
"""Members of a scope that mean something in another process."""


@dataclass(frozen=True)
class Carried:
    """A request with its whole body."""

    scope: dict[str, Any]
    body: bytes

    @classmethod
    def of(cls, scope: Scope, body: bytes) -> "Carried":
        """The request of an ASGI scope."""
        return cls({name: scope[name] for name in KEPT if name in scope}, body)


@dataclass(frozen=True)
class Whole:
    """An answer that has come to its end."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes


async def perform(app: ASGIApp, request: Carried) -> AsyncGenerator[Messages, None]:
    """Have ``app`` answer; gives its messages as they come, those that wait already together.

    Closing it is the client's leaving.
    """
    sent: asyncio.Queue[Message | None] = asyncio.Queue()
    left = asyncio.Event()
    body = [request.body]

    async def receive() -> Message:
        if body:
            return {"type": "http.request", "body": body.pop(), "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if left.is_set():
            raise OSError("the client has gone")
        sent.put_nowait(message)

    task: asyncio.Task[None] = asyncio.ensure_future(_run(app, dict(request.scope), receive, send))
    task.add_done_callback(lambda _: sent.put_nowait(None))
    try:
        ended = False
        while not ended:
            waiting = [await sent.get()]
            while not sent.empty():
                waiting.append(sent.get_nowait())
            ended = None in waiting
            if messages := [message for message in waiting if message is not None]:
                yield messages
    finally:
        left.set()
        await asyncio.wait((task,), timeout=LEAVE_S)
        task.cancel()


async def _run(app: ASGIApp, scope: Scope, receive: Any, send: Any) -> None:
    try:
        await app(scope, receive, send)
    except OSError:  # what `send` raises to one that streams to nobody
        logger.debug("an answer's client has gone", exc_info=True)
    except Exception:  # it was answered with a problem document; uvicorn would log it too
        logger.exception("a request failed")


async def whole(app: ASGIApp, request: Carried) -> Whole:
    """The whole answer of ``app``."""
    messages: Messages = []
    async with aclosing(perform(app, request)) as parts:
        async for some in parts:
            messages += some
    return joined(messages)


def joined(messages: Sequence[Message]) -> Whole:
    """An answer out of its messages; none at all is a 500."""
    status, headers, body = 500, [], b""
    for message in messages:
        if message["type"] == "http.response.start":
            status, headers = message["status"], list(message.get("headers", ()))
        elif message["type"] == "http.response.body":
            body += message.get("body", b"")
    return Whole(status, headers, body)
