"""Times, names, logs and traces each request, from arrival to first byte and to its end."""

import logging
import re
import time
import uuid
from contextlib import nullcontext

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import logs, spans
from server.api.schemas import SESSION_ID_PATTERN
from server.telemetry import Telemetry

access = logging.getLogger("server.access")

METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
"""What a client or a proxy may call its request; anything else could forge lines of a log."""

QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds by machines: logged at the level debug, and no traces."""


class Observed:
    """ASGI middleware that watches requests; ``scope["app"]`` has a runtime with telemetry."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Watch one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        watch = _Watch(scope, send, logs.begin(request_id(headers.get("x-request-id"))))
        quiet = scope["path"] in QUIET
        with nullcontext() if quiet else spans.request(headers) as span:
            try:
                await self._app(scope, receive, watch)
            finally:
                fields = watch.end(logging.DEBUG if quiet else logging.INFO)
                if span is not None:
                    name = f"{fields['http.request.method']} {fields['http.route']}"
                    spans.finish(span, name, watch.status, fields)


class _Watch:
    """What one request's answer is sent through."""

    def __init__(self, scope: Scope, send: Send, request: logs.Request) -> None:
        self.status = 500  # unless an answer says otherwise
        self._scope = scope
        self._send = send
        self._request = request
        self._begin_s = time.perf_counter()
        self._first_s: float | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self._request.id.encode())]
            if self._scope["app"].state.stopping:  # a proxy must not keep what is about to close
                headers.append((b"connection", b"close"))
            message["headers"] = headers
        elif self._first_s is None:
            self._first_s = time.perf_counter() - self._begin_s
        await self._send(message)

    def end(self, level: int) -> dict[str, str]:
        """Count and log the request; returns what traces call it."""
        scope, whole_s = self._scope, time.perf_counter() - self._begin_s
        # Whatever else a client calls has one name, or strangers could fill the memory.
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in METHODS and route != "unmatched" else "any"
        first_s = whole_s if self._first_s is None else self._first_s
        telemetry: Telemetry = scope["app"].state.runtime.telemetry
        telemetry.answered(method, route, self.status, first_s, whole_s)
        named_session = scope.get("path_params", {}).get("session_id")
        if named_session and re.fullmatch(SESSION_ID_PATTERN, named_session):
            logs.note(session_id=named_session)
        fields = {
            "method": method,
            "route": route,
            "status": self.status,
            "first_byte_ms": round(first_s * 1e3, 1),
            "duration_ms": round(whole_s * 1e3, 1),
        }
        text = "%s %s %d in %.1f ms"
        args = (method, route, self.status, whole_s * 1e3)
        access.log(level, text, *args, extra={logs.FIELDS: fields})
        named = {"http.request.method": method, "http.route": route}
        return named | {f"innerloop.{name}": value for name, value in self._request.known.items()}


def request_id(given: str | None) -> str:
    """What the caller calls the request where that is a name, else a new one."""
    return given if given and REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
