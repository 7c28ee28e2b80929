"""Which session a request is about, as far as one can tell without answering it.

For whoever sends a session's requests to one place; nothing is decided or refused here.
"""

import json
import re
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.types import Scope

from server.api.body_limit import is_import
from server.api.schemas import SESSION_ID_PATTERN

PATH: Final = re.compile(r"/(?:admin/)?sessions/([^/]+)")


def session_of(scope: Scope, body: bytes) -> str | None:
    """The session by the header `X-Session-ID`, the path, or the body's `session_id`, else None."""
    found: Any = Headers(scope=scope).get("x-session-id")
    if found is None and (in_path := PATH.match(scope["path"])):
        found = in_path[1]
    if found is None and body and not is_import(scope):
        found = _in_body(body)
    named = isinstance(found, str) and re.fullmatch(SESSION_ID_PATTERN, found)
    return found if named else None


def _in_body(body: bytes) -> Any:
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError):
        return None  # a replica says what is wrong with it
    return sent.get("session_id") if isinstance(sent, dict) else None
