"""Every call as a request, and how often it is sent; nothing here waits or reads a socket."""

import json
import random
import re
import secrets
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

import httpx

from innerloop.errors import InnerloopError, Invalid, Unavailable, error_of
from innerloop.types import Answer, Event, Lesson, Prompt, lesson_fields, prompt_fields

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 8.0
SESSION_ID = re.compile(r"(?!\.+$)[A-Za-z0-9._:@-]{1,128}")
PAGE = 500  # items or sessions read at once
LEAST_SILENCE_S = 60.0  # of events: the server gives a sign of life every 15 s


@dataclass(frozen=True)
class Call:
    """A request that may be sent again as it is: what it teaches has a key, or counts once so."""

    method: str
    path: str
    body: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, Any] = field(default_factory=dict)
    content: bytes | None = None  # a body that is no JSON; its type is among the headers
    done: int = 0  # the status by which a repeated call learns that an earlier one came through
    done_after_503: bool = True  # it says so of one that was answered with 503, too
    least_read_s: float = 0.0  # read timeouts below it are too short for this call's stream

    def options(self) -> dict[str, Any]:
        """Arguments of httpx."""
        body = {"json": dict(self.body) or None}
        return {
            "method": self.method,
            "url": self.path,
            **(body if self.content is None else {"content": self.content}),
            "headers": dict(self.headers),
            "params": dict(self.query),
        }


def checked_address(base_url: str) -> str:
    """A server's address.

    Raises:
        Invalid: nothing could be reached there.
    """
    if not base_url.startswith(("http://", "https://")):
        raise Invalid(f"base_url {base_url!r}: an address begins with http:// or https://")
    return base_url


def generate(session_id: str, prompt: Prompt, stream: bool, options: Mapping[str, Any]) -> Call:
    """``POST /generate``."""
    body = {"session_id": session_id, **prompt_fields(prompt), **options}
    whole = body | ({"stream": True} if stream else {})
    return Call("POST", "/generate", whole, _routed(session_id))


def adapt(
    session_id: str,
    lessons: Iterable[Lesson],
    steps: int | None,
    dry_run: bool,
    idempotency_key: str | None,
) -> Call:
    """``POST /adapt``."""
    body: dict[str, Any] = {
        "session_id": session_id,
        "examples": [lesson_fields(lesson) for lesson in lessons],
    }
    if steps is not None:
        body["steps"] = steps
    if dry_run:
        return Call("POST", "/adapt", body | {"dry_run": True}, _routed(session_id))
    return Call("POST", "/adapt", body, _keyed(idempotency_key) | _routed(session_id))


def feedback(
    completion: Answer | str,
    rating: int | None,
    correction: str | None,
    comment: str | None,
) -> Call:
    """``POST /feedback``. Without a key the server takes the same feedback on a completion once, in
    this call or a later one; a key of this call's own would make it another feedback each time."""
    named = completion.id if isinstance(completion, Answer) else completion
    known = {"rating": rating, "correction": correction, "comment": comment}
    body = {"completion_id": named} | {k: v for k, v in known.items() if v is not None}
    return Call("POST", "/feedback", body)


def session(method: str, session_id: str, *rest: str | int, **query: Any) -> Call:
    """A call of ``/sessions/{id}`` or below."""
    path = "/".join(["/sessions", _in_path(session_id), *map(str, rest)])
    return Call(method, path, query=query, done=404 if method == "DELETE" else 0)


def items(session_id: str, offset: int) -> Call:
    """A page of ``GET /sessions/{id}/feedback``."""
    return session("GET", session_id, "feedback", offset=offset, limit=PAGE)


def sessions(contains: str, taught: bool | None, offset: int) -> Call:
    """``GET /sessions``: a page of them by name, which does not change as they are used."""
    query = {"contains": contains, "sort": "session_id", "order": "asc"}
    which = {} if taught is None else {"taught": taught}
    return Call("GET", "/sessions", query={**query, **which, "offset": offset, "limit": PAGE})


def house(method: str, tenant: str | None, *rest: str | int, **query: Any) -> Call:
    """A call of ``/house`` or below; an operator says whose."""
    path = "/".join(["/house", *map(str, rest)])
    done = 404 if method == "DELETE" else 0
    return Call(method, path, headers=_acting(tenant), query=query, done=done)


def house_items(tenant: str | None, offset: int) -> Call:
    """A page of ``GET /house/feedback``."""
    return house("GET", tenant, "feedback", offset=offset, limit=PAGE)


def house_adapt(
    tenant: str | None,
    lessons: Iterable[Lesson],
    steps: int | None,
    dry_run: bool,
    idempotency_key: str | None,
) -> Call:
    """``POST /house/adapt``."""
    body: dict[str, Any] = {"examples": [lesson_fields(lesson) for lesson in lessons]}
    if steps is not None:
        body["steps"] = steps
    if dry_run:
        return Call("POST", "/house/adapt", body | {"dry_run": True}, _acting(tenant))
    return Call("POST", "/house/adapt", body, _keyed(idempotency_key) | _acting(tenant))


def house_feedback(
    tenant: str | None, completion: Answer | str, rating: int | None, correction: str | None
) -> Call:
    """``POST /house/feedback``."""
    call = feedback(completion, rating, correction, None)
    return replace(call, path="/house/feedback", headers={**call.headers, **_acting(tenant)})


def house_rollback(tenant: str | None, version: int) -> Call:
    """``POST /house/rollback``."""
    return Call("POST", "/house/rollback", {"adapter_version": version}, _acting(tenant))


def make_session(
    session_id: str | None, fork: str | None, version: int | None, with_house: bool
) -> Call:
    """``POST /sessions``; the id is drawn here, so that a repeated call makes no second one."""
    body: dict[str, Any] = {"session_id": session_id or secrets.token_hex(12)}
    if fork is not None:
        body["fork"] = {"session_id": fork}
        if version is not None:
            body["fork"]["adapter_version"] = version
    if not with_house:
        body["house"] = False
    return Call("POST", "/sessions", body, done=409, done_after_503=session_id is None)


def make_token(session_id: str, expires_in_s: int, scopes: Sequence[str] | None) -> Call:
    """``POST /sessions/{id}/tokens``; a repeated call makes another one, and the first expires."""
    body: dict[str, Any] = {"expires_in_s": expires_in_s}
    if scopes is not None:
        body["scopes"] = list(scopes)
    return Call("POST", f"/sessions/{_in_path(session_id)}/tokens", body)


def import_session(session_id: str | None, content: bytes) -> Call:
    """``POST /sessions`` with a zip; the id is drawn here as well."""
    name = session_id or secrets.token_hex(12)
    return Call(
        "POST",
        "/sessions",
        headers={"Content-Type": "application/zip"},
        query={"session_id": name},
        content=content,
        done=409,
        done_after_503=session_id is None,
    )


def export(session_id: str, version: int | None, tenant: str | None) -> Call:
    """``GET /admin/sessions/{id}/export``, for operators."""
    return Call(
        "GET",
        f"/admin/sessions/{_in_path(session_id)}/export",
        headers=_acting(tenant),
        query={} if version is None else {"adapter_version": version},
    )


def _in_path(session_id: str) -> str:
    """A session's id as a part of a path.

    Raises:
        Invalid: it would lead to another path, and the call to something else.
    """
    if not session_id.strip("."):
        raise Invalid(f"a session cannot be called {session_id!r}: URLs take it for no name")
    return quote(session_id, safe="")


def _acting(tenant: str | None) -> dict[str, str]:
    return {} if tenant is None else {"X-Tenant": tenant}


def read(response: httpx.Response) -> Any:
    """The JSON of an answer.

    Raises:
        InnerloopError: the server refused.
    """
    content = read_bytes(response)
    try:
        return json.loads(content) if content else None
    except ValueError as error:
        raise InnerloopError("the answer is no JSON: is this an innerloop server?") from error


def read_bytes(response: httpx.Response) -> bytes:
    """The body of an answer.

    Raises:
        InnerloopError: the server refused.
    """
    if response.is_success:
        return response.content
    try:
        document = response.json()
    except ValueError:
        document = {}
    raise error_of(response.status_code, document if isinstance(document, dict) else {})


def asks_to_come_again(response: httpx.Response) -> bool:
    """Whether to send the call again: the server is away, or has too many for a moment."""
    if response.status_code == 429:
        asked = response.headers.get("retry-after", "")
        return asked.isdecimal() and float(asked) <= LONGEST_PAUSE_S
    return response.status_code == 503


def may_have_arrived(
    call: Call, response: httpx.Response | None, failure: httpx.TransportError | None
) -> bool:
    """Whether an attempt that is made again is taken for one that may have come through: not if it
    was held up (429), and not if there was no connection to send it by.

    What is answered with 503 was mostly not done, but it may have been: Redis did not confirm it in
    time, or a replica or proxy was lost under it. So it counts where ``done`` is no claim that may
    be false: what was to be deleted is gone, and an id that was drawn here is nobody else's. A
    session of an id that the caller chose may be another's, with other things taught.
    """
    if response is not None:
        return response.status_code != 429 and call.done_after_503
    return not isinstance(failure, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)


def timeout(call: Call, usual: httpx.Timeout) -> httpx.Timeout:
    """How long to wait for a call that is streamed."""
    if usual.read is None:
        return usual
    return httpx.Timeout(**usual.as_dict() | {"read": max(usual.read, call.least_read_s)})


def pause_s(attempt: int, response: httpx.Response | None) -> float:
    """How long to wait before the next attempt: what the server asks for, else ever longer."""
    asked = "" if response is None else response.headers.get("retry-after", "")
    if asked.isdecimal():
        return min(float(asked), LONGEST_PAUSE_S)
    longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt)
    return random.uniform(longest / 2, longest)  # so that not all clients come back at once


def unreachable(error: httpx.TransportError) -> Unavailable:
    """The exception for a server that did not answer."""
    return Unavailable(f"the server does not answer: {str(error) or type(error).__name__}")


class Events:
    """Server-sent events out of a text that comes in pieces."""

    def __init__(self) -> None:
        """Nothing came yet."""
        self._name = ""
        self._rest = ""
        self.answer: Answer | None = None

    def take(self, piece: str) -> Iterator[str]:
        """Take a piece; gives the texts that it brings, one after the other.

        Raises:
            InnerloopError: the server ends the stream with an error.
        """
        # Not splitlines: an answer may hold other characters that end lines for Unicode.
        *lines, self._rest = (self._rest + piece).split("\n")
        for line in lines:
            if text := self._line(line):
                yield text

    def _line(self, line: str) -> str:
        name, _, value = line.partition(": ")
        if name == "event":
            self._name = value
        elif name == "data":
            data = json.loads(value)
            if self._name == "delta":
                return str(data["text"])
            if self._name == "error":
                raise error_of(int(data.get("status", 0)), data)
            if self._name == "done":
                self.answer = Answer.read(data)
        return ""

    def end(self) -> Answer:
        """The whole answer.

        Raises:
            InnerloopError: the stream broke off before it.
        """
        if self.answer is None:
            raise InnerloopError("the answer broke off before it was finished")
        return self.answer


def _routed(session_id: str) -> dict[str, str]:
    """For proxies, which send a session to the same replica and read no bodies."""
    # What is no session's name is for the server to refuse, and may be no header at all.
    return {"X-Session-ID": session_id} if SESSION_ID.fullmatch(session_id) else {}


def happenings(session_id: str, after: str | None) -> Call:
    """``GET /sessions/{id}/events``."""
    headers = {} if after is None else {"Last-Event-ID": after}
    call = session("GET", session_id, "events")
    return replace(call, headers=headers, least_read_s=LEAST_SILENCE_S)


class Happenings:
    """A session's events out of a text that comes in pieces."""

    def __init__(self) -> None:
        """Nothing came yet."""
        self._rest = ""

    def take(self, piece: str) -> Iterator[Event]:
        """Take a piece; gives the events that it completes.

        Raises:
            InnerloopError: the server ends the stream with an error.
        """
        *blocks, self._rest = (self._rest + piece).split("\n\n")
        for block in blocks:
            fields = dict(line.partition(": ")[::2] for line in block.split("\n"))
            if "event" not in fields:  # a sign of life
                continue
            data = json.loads(fields["data"])
            if fields["event"] == "error":
                raise error_of(int(data.get("status", 0)), data)
            yield Event.read(data | {"id": fields.get("id", ""), "type": fields["event"]})


def _keyed(idempotency_key: str | None) -> dict[str, str]:
    return {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
