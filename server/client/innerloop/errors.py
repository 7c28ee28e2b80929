"""What a server refuses, as exceptions; the message is the server's own and says what to do."""

from collections.abc import Mapping, Sequence
from typing import Any


class InnerloopError(Exception):
    """A call that did not go through. ``status`` is HTTP's, 0 where no server answered."""

    def __init__(
        self, message: str, status: int = 0, errors: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.errors = tuple(errors)  # where single fields are wrong: `in`, `path`, `message`


class Invalid(InnerloopError, ValueError):
    """400, 413, 415 or 422: the request is wrong; sending it again does not help."""


class Unauthorized(InnerloopError):
    """401: no key, or one that the server does not know."""


class Forbidden(InnerloopError):
    """403: the key does not open this."""


class NotFound(InnerloopError, LookupError):
    """404: no such session, item, version or completion."""


class Conflict(InnerloopError):
    """409: the session exists already, is full, or an idempotency key came with another body."""


class RateLimited(InnerloopError):
    """429: the tenant or the session has used up its requests or feedback, for longer than a call
    waits."""


class Unavailable(InnerloopError, ConnectionError):
    """503, or nobody answered, after all retries. Feedback may be in the log: repeat the call with
    the same ``idempotency_key`` to learn it once."""


_BY_STATUS: Mapping[int, type[InnerloopError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: Invalid,
    415: Invalid,
    422: Invalid,
    429: RateLimited,
    503: Unavailable,
}


def error_of(status: int, document: Mapping[str, Any]) -> InnerloopError:
    """The exception for a problem document (RFC 9457)."""
    kind = _BY_STATUS.get(status, InnerloopError)
    detail = str(document.get("detail") or f"the server answered {status}")
    return kind(detail, status, document.get("errors") or ())
