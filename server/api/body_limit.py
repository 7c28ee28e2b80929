"""Refuses request bodies that are too long, before they fill the memory, and those that are
compressed or no zip where one is taken, before they pass for JSON that is malformed or too long."""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

IMPORT_PATH = "/sessions"
ZIP_TYPE = "application/zip"
ZIP_TYPES = frozenset({ZIP_TYPE, "application/x-zip-compressed"})
"""The second is what Windows calls a zip."""


class BodyLimit:
    """ASGI middleware: a body of more than ``max_bytes`` is answered with 413.

    A zip that is sent to be imported may have ``max_import_bytes``.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_import_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_import_bytes = max_import_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what arrives; the length that a client announces is not believed."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen_bytes, max_bytes, setting = 0, self._max_bytes, "INNERLOOP_MAX_BODY_BYTES"
        if is_import(scope):
            max_bytes, setting = self._max_import_bytes, "INNERLOOP_MAX_IMPORT_BYTES"

        async def counted() -> Message:
            nonlocal seen_bytes
            message = await receive()
            if not seen_bytes and message.get("body"):
                _check_type(scope)
            seen_bytes += len(message.get("body", b""))
            if seen_bytes > max_bytes:
                # FastAPI reads the body inside its own error handling, and lets this one pass.
                raise HTTPException(
                    413,
                    f"the body is longer than {max_bytes} bytes: send less, or start the server "
                    f"with a greater {setting}",
                )
            return message

        await self._app(scope, counted, send)


def _check_type(scope: Scope) -> None:
    """See that a body is not compressed and, for `POST /sessions`, that it is declared as one of
    the two kinds that it takes.

    Raises:
        HTTPException: 415.
    """
    packed = Headers(scope=scope).get("content-encoding", "identity")
    if packed.strip().lower() != "identity":
        raise HTTPException(
            415,
            f"the body is compressed ({packed}), which is not supported: send it as it is, without "
            "Content-Encoding",
        )
    if (scope["method"], scope["path"]) != ("POST", IMPORT_PATH) or is_import(scope):
        return
    sent = _media_type(scope)
    if "json" in sent:
        return
    raise HTTPException(
        415,
        f"the body came as {sent or 'nothing in particular'}: send an adapter's zip, and nothing "
        f"around it, with Content-Type: {ZIP_TYPE}, and JSON with Content-Type: application/json",
    )


def is_import(scope: Scope) -> bool:
    """Whether a request brings an adapter to `POST /sessions`, as a zip instead of JSON."""
    if (scope["method"], scope["path"]) != ("POST", IMPORT_PATH):
        return False
    return _media_type(scope) in ZIP_TYPES


def _media_type(scope: Scope) -> str:
    sent = Headers(scope=scope).get("content-type", "")
    return sent.partition(";")[0].strip().lower()
