"""The door of several replicas: takes requests, sends each to one of them, passes its answer on.

It knows HTTP and what may be asked twice, not who the replicas are or how they are reached: that is
`Replicas`, which `server.scale` has of Ray. Keys, rates, limits and errors are the replicas' own; a
body is read only to find the session in it.
"""

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Final, Protocol

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Receive, Scope, Send

from server import logs
from server.api.affinity import session_of
from server.api.body_limit import is_import
from server.api.carrying import Carried, Messages, Whole
from server.api.merging import merged
from server.api.observed import request_id
from server.api.problems import Problem, answer, document_for
from server.api.streams import event

logger = logging.getLogger(__name__)

ATTEMPTS: Final = 3
"""How many replicas a request is sent to before its client is told that they die under it."""
REPEATABLE: Final = frozenset(
    {"/generate", "/adapt", "/feedback", "/v1/chat/completions", "/v1/completions"}
)
"""POSTs that may be done twice: answers change nothing, one completion's feedback counts once, and
what is taught goes under an `Idempotency-Key`."""


class ReplicaLost(Exception):
    """The replica that had a request is gone; whether it did what was asked is not known."""


class NoReplica(Exception):
    """No replica took the request; the message says why. Nothing was done."""


class Replicas(Protocol):
    """Those that answer."""

    wanted: int
    """How many there should be."""

    def ask(self, request: Carried, session_id: str | None) -> AsyncGenerator[Messages, None]:
        """Have one of them answer, the session's own where that has room; closing it is leaving.

        Raises:
            ReplicaLost, NoReplica.
        """
        ...

    async def ask_all(self, request: Carried) -> Sequence[tuple[int, Whole]]:
        """Have every one of them answer; gives the ranks and answers of those that did."""
        ...


class Ingress:
    """An ASGI application over `Replicas`; ``max_…`` are where it stops reading a body."""

    def __init__(self, replicas: Replicas, max_body_bytes: int, max_import_bytes: int) -> None:
        self._replicas = replicas
        self._max_body_bytes = max_body_bytes
        self._max_import_bytes = max_import_bytes
        self._told = asyncio.Event()
        self.stopping = False
        """Set while a load balancer is given time to notice."""

    def end_listening(self) -> None:
        """End the streams that have no end of their own."""
        self._told.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        named = logs.begin(request_id(Headers(scope=scope).get("x-request-id")))
        scope = {**scope, "headers": list(scope["headers"])}
        MutableHeaders(scope=scope)["x-request-id"] = named.id  # one id through all logs
        request = Request(scope)
        try:
            if scope["path"] == "/healthz":
                await JSONResponse({"status": "ok"})(scope, receive, send)
            elif scope["path"] in ("/readyz", "/metrics"):
                await (await self._about_all(request))(scope, receive, send)
            else:
                await self._forward(request, receive, send)
        except Problem as problem:
            logger.warning("%s %s: %s", scope["method"], scope["path"], problem.detail)
            response = answer(request, problem)
            response.headers["x-request-id"] = named.id
            await response(scope, receive, send)

    async def _forward(self, request: Request, receive: Receive, send: Send) -> None:
        body = await self._read(request.scope, receive)
        if body is None:
            return  # the client left while it was sending
        repeatable = _may_repeat(request.scope)
        carried = Carried.of(request.scope, body)
        session_id = session_of(request.scope, body)
        passing = _Passing(send, self)
        watch = asyncio.ensure_future(self._until_left(request.scope, receive))
        try:
            for attempt in range(ATTEMPTS):
                task = asyncio.ensure_future(passing.run(self._replicas.ask(carried, session_id)))
                await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
                if not task.done():
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                    if self._told.is_set() and passing.begun:
                        await send({"type": "http.response.body", "body": b""})
                    return
                try:
                    task.result()
                    return
                except NoReplica as error:
                    raise Problem("unavailable", str(error)) from error
                except ReplicaLost as error:
                    if passing.begun:
                        await passing.break_off(request)
                        return
                    if not repeatable or attempt == ATTEMPTS - 1:
                        raise _lost(request.scope) from error
                    logger.warning("a replica was lost under a request; asking another")
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def _about_all(self, request: Request) -> Response:
        """`/readyz` and `/metrics` of all replicas as one."""
        readiness = request.url.path == "/readyz"
        if readiness and self.stopping:
            raise Problem("unavailable", "not ready, the server is stopping: use another replica")
        found = await self._replicas.ask_all(Carried.of(request.scope, b""))
        good = [(rank, whole) for rank, whole in found if whole.status == 200]
        if not good:
            if not found:
                raise Problem("unavailable", "no replica answers: see the server's log")
            _, one = found[0]
            return _response(one, one.body)
        _, one = good[0]
        if not readiness:
            return _response(one, merged([(str(rank), whole.body) for rank, whole in good]))
        document = json.loads(one.body)
        document |= {"replicas_ready": len(good), "replicas": self._replicas.wanted}
        return _response(one, json.dumps(document).encode())

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body, cut behind what replicas take: they say so in their own words."""
        most = self._max_import_bytes if is_import(scope) else self._max_body_bytes
        body, more = bytearray(), True
        while more and len(body) <= most:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
        return bytes(body[: most + 1])

    async def _until_left(self, scope: Scope, receive: Receive) -> None:
        """Return when the client has gone, or when its endless stream has to end."""
        gone = asyncio.ensure_future(_gone(receive))
        waits = {gone}
        if scope["path"].endswith("/events"):
            waits.add(asyncio.ensure_future(self._told.wait()))  # type: ignore[arg-type]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()


class _Passing:
    """One answer on its way to the client."""

    def __init__(self, send: Send, ingress: Ingress) -> None:
        self.begun = False
        self._send = send
        self._ingress = ingress
        self._events = False

    async def run(self, parts: AsyncGenerator[Messages, None]) -> None:
        """Send messages on as they come. Raises ReplicaLost, NoReplica."""
        ended = False
        async with aclosing(parts):
            async for messages in parts:
                for message in messages:
                    if message["type"] == "http.response.start":
                        self.begun = True
                        headers = MutableHeaders(raw=list(message["headers"]))
                        self._events = "text/event-stream" in headers.get("content-type", "")
                        if self._ingress.stopping:
                            headers["connection"] = "close"
                        message = {**message, "headers": headers.raw}
                    else:
                        ended = not message.get("more_body", False)
                    await self._send(message)
        if not ended:
            raise ReplicaLost("its answer has no end")

    async def break_off(self, request: Request) -> None:
        """End an answer whose replica was lost so that nobody takes it for whole."""
        if not self._events:
            # No chunk says that it is the last, so the client's library raises.
            raise ConnectionAbortedError("a replica was lost in the midst of an answer")
        text = event(document_for(request, _lost(request.scope)), "error")
        await self._send({"type": "http.response.body", "body": text.encode()})


def _lost(scope: Scope) -> Problem:
    told = "the replica that had this request was lost"
    if scope["method"] in ("GET", "HEAD") or scope["path"] in REPEATABLE:
        return Problem("unavailable", f"{told}: send it again")
    return Problem(
        "unavailable", f"{told}, and whether it was done is not known: look, or send it again"
    )


def _may_repeat(scope: Scope) -> bool:
    """Whether another replica may be asked; makes it so where a key does."""
    if scope["method"] in ("GET", "HEAD", "OPTIONS"):
        return True
    if scope["path"] == "/adapt":
        headers = MutableHeaders(scope=scope)
        headers.setdefault("idempotency-key", f"ingress-{secrets.token_hex(16)}")
    return scope["method"] == "POST" and scope["path"] in REPEATABLE


def _response(whole: Whole, body: bytes) -> Response:
    response = Response(body, whole.status)
    kept = [(name, value) for name, value in whole.headers if name.lower() != b"content-length"]
    response.raw_headers = [*kept, (b"content-length", str(len(body)).encode())]
    return response


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _live(receive: Receive, send: Send) -> None:
    """Take part in a lifespan that has nothing to start."""
    with suppress(KeyError):
        while True:
            done = {"lifespan.startup": "startup", "lifespan.shutdown": "shutdown"}
            kind = done[(await receive())["type"]]
            await send({"type": f"lifespan.{kind}.complete"})
            if kind == "shutdown":
                return
