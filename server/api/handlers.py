"""Which error of which room becomes which problem document.

Rooms raise errors that say what to do; here they only get a status. What is answered with 500 is
logged with its trace, which is kept from the client, and so is the message of what nobody foresaw.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from adapters.chat import PromptError
from adapters.config import AdapterError
from adapters.peft_io import PeftFormatError
from server import logs
from server.api.problems import FieldError, Problem, answer
from server.engine import EngineBusy, EngineError, EngineFailed, EngineStopped, InvalidRequest
from server.flows.choosing import VersionUnusable
from server.flows.outcome import LessonError, SessionFull
from server.flows.watching import TooManyWatchers
from server.sessions import (
    AccessConflict,
    CompletionNotFound,
    IdempotencyConflict,
    InvalidName,
    ItemNotFound,
    KeyNotFound,
    NotStorable,
    SessionExists,
    SessionImported,
    SessionNotFound,
    SessionStoreError,
    StoreCorrupt,
    StoreUnavailable,
    VersionConflict,
    VersionNotFound,
)

logger = logging.getLogger(__name__)


class ClientLeft(Exception):
    """The client closed its connection; whatever is answered, nobody reads it."""


_NAMES: Sequence[tuple[type[Exception], str]] = (
    (SessionNotFound, "not-found"),
    (ItemNotFound, "not-found"),
    (VersionNotFound, "not-found"),
    (CompletionNotFound, "not-found"),
    (KeyNotFound, "not-found"),
    (AccessConflict, "conflict"),
    (IdempotencyConflict, "conflict"),
    (SessionExists, "conflict"),
    (SessionImported, "conflict"),
    (VersionConflict, "conflict"),
    (InvalidName, "invalid"),
    (NotStorable, "invalid"),
    (StoreUnavailable, "unavailable"),
    (EngineBusy, "busy"),
    (EngineStopped, "unavailable"),
    (InvalidRequest, "invalid"),
    (PromptError, "invalid"),
    (LessonError, "invalid"),
    (SessionFull, "conflict"),
    (VersionUnusable, "conflict"),
    (TooManyWatchers, "busy"),
    (PeftFormatError, "conflict"),
)
_NO_OBJECT = ("missing", "model_attributes_type")
_STATUS_NAMES = {404: "not-found", 405: "method-not-allowed", 413: "too-large", 415: "media-type"}


def install(app: FastAPI) -> None:
    """Make every error of ``app`` a problem document."""
    app.add_exception_handler(Problem, _on_error)
    app.add_exception_handler(RequestValidationError, _on_error)
    app.add_exception_handler(HTTPException, _on_error)
    app.add_exception_handler(SessionStoreError, _on_error)
    app.add_exception_handler(EngineError, _on_error)
    app.add_exception_handler(AdapterError, _on_error)
    app.add_exception_handler(Exception, _on_failure)
    app.add_exception_handler(ClientLeft, _on_client_left)


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    return answer(request, to_problem(error, request))


async def _on_failure(request: Request, error: Exception) -> JSONResponse:
    """As `_on_error`, outside of the middleware that names answers."""
    response = await _on_error(request, error)
    # uvicorn hangs up after it; a client that is not told sends its next request to nobody.
    response.headers["Connection"] = "close"
    if (known := logs.current()) is not None:
        response.headers["X-Request-ID"] = known.id
    return response


async def _on_client_left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nginx's number for it, for whoever reads the log


def to_problem(error: Exception, request: Request | None = None) -> Problem:
    """The problem that tells a client about ``error``; what nobody foresaw is logged."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestValidationError):
        return _from_validation(error, request)
    if isinstance(error, HTTPException):
        name = _STATUS_NAMES.get(error.status_code, "malformed")
        if (unread := _unread(error)) is not None:
            return Problem(name, unread)
        return Problem(name, _detail(error, request), headers=error.headers)
    for kind, name in _NAMES:
        if isinstance(error, kind):
            return Problem(name, str(error), headers=_headers(error))
    logger.error("a request failed", exc_info=error)
    if isinstance(error, StoreCorrupt | EngineFailed):
        return Problem("internal", str(error))
    return Problem(
        "internal",
        "the server failed on this request, and its log has the cause; whether anything was done "
        "is not known: look before you send it again, or repeat its Idempotency-Key",
    )


def _headers(error: Exception) -> dict[str, str]:
    if isinstance(error, EngineBusy):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    return {}


def _detail(error: HTTPException, request: Request | None) -> str:
    if request is None or error.status_code not in (404, 405):
        return str(error.detail)
    what = "route" if error.status_code == 404 else f"method {request.method} on"
    return f"there is no {what} {request.url.path}: /openapi.json lists all routes"


def _unread(error: HTTPException) -> str | None:
    """Why FastAPI could not read a body as JSON, where it says no more than that it could not."""
    if isinstance(error.__cause__, UnicodeDecodeError):
        return "the body is not UTF-8, as JSON has to be"
    if isinstance(error.__cause__, RecursionError):
        return "the body's JSON is nested too deep"
    return None


def _from_validation(error: RequestValidationError, request: Request | None) -> Problem:
    found = error.errors()
    if any(item["type"] == "json_invalid" for item in found):
        reason = found[0].get("ctx", {}).get("error", "invalid JSON")
        return Problem("malformed", f"the body is not valid JSON ({reason})")
    sent = "" if request is None else request.headers.get("content-type", "")
    if [item["loc"] for item in found] == [("body",)] and "json" not in sent:
        return Problem(
            "media-type",
            f"the body came as {sent or 'nothing in particular'}: send JSON with the header "
            "Content-Type: application/json",
        )
    errors = [_field_error(item) for item in found]
    detail = "; ".join(f"{e.path}: {e.message}" if e.path else e.message for e in errors[:8])
    return Problem("invalid", detail, errors=errors)


def _field_error(item: Any) -> FieldError:
    location, *parts = item["loc"]
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        message = "there is no such field"
    elif item["loc"] == ("body",) and item["type"] in _NO_OBJECT:
        message = "send a JSON object with this route's fields: the body is none, or empty"
    return FieldError(location=str(location), path=path, message=message)
