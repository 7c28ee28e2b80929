"""The log: one line for each message, for people or as JSON, with the request that it is about.

A line names the request, the session and the tenant. It never holds a prompt, a completion or a
key: nobody passes any of them here, and what a request sent is logged nowhere else.
"""

import json
import logging
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Literal

Format = Literal["text", "json"]

FIELDS: Final = "fields"
"""`logger.info(..., extra={FIELDS: {...}})` adds to a JSON line; the message says it to people."""


@dataclass(slots=True)
class Request:
    """What is known of the request that is being answered."""

    id: str
    session_id: str | None = None
    tenant: str | None = None

    @property
    def known(self) -> dict[str, str]:
        """What there is, by its name in the log."""
        named = {"request_id": self.id, "session_id": self.session_id, "tenant": self.tenant}
        return {name: value for name, value in named.items() if value is not None}


_request: ContextVar[Request | None] = ContextVar("request", default=None)


def begin(request_id: str) -> Request:
    """Have every line of this task, and of those it starts, be about this request."""
    request = Request(request_id)
    _request.set(request)
    return request


def current() -> Request | None:
    """The request that is being answered, if one is."""
    return _request.get()


def note(*, session_id: str | None = None, tenant: str | None = None) -> None:
    """Add what was found out about the request, also for the lines of whoever called."""
    # Changed in place: FastAPI runs dependencies in copies of the context.
    if (request := _request.get()) is not None:
        request.session_id = session_id or request.session_id
        request.tenant = tenant or request.tenant


class TextLines(logging.Formatter):
    """Lines for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line without what follows it, such as a trace."""
        request = _request.get()
        about = "" if request is None else "".join(f" {k}={v}" for k, v in request.known.items())
        # One line, whatever a stranger calls things.
        return (super().formatMessage(record) + about).replace("\r", "\\r").replace("\n", "\\n")


class JsonLines(logging.Formatter):
    """One JSON object a line, for whatever collects logs."""

    def format(self, record: logging.LogRecord) -> str:
        """Write the record as JSON; a trace goes into `exception`, newlines escaped."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{now}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request := _request.get()) is not None:
            line |= request.known
        fields: Mapping[str, Any] = getattr(record, FIELDS, {})
        line |= fields
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str, form: Format) -> None:
    """Write everything from ``level`` on to standard error, other libraries' lines included."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
