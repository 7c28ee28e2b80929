"""Refuses request bodies that are too long, before they fill the memory."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """ASGI middleware: a body of more than ``max_bytes`` is answered with 413."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what arrives; the length that a client announces is not believed."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen_bytes = 0

        async def counted() -> Message:
            nonlocal seen_bytes
            message = await receive()
            seen_bytes += len(message.get("body", b""))
            if seen_bytes > self._max_bytes:
                # FastAPI reads the body inside its own error handling, and lets this one pass.
                raise HTTPException(
                    413,
                    f"the body is longer than {self._max_bytes} bytes: send less, or start the "
                    "server with a greater INNERLOOP_MAX_BODY_BYTES",
                )
            return message

        await self._app(scope, counted, send)
