"""The client for ordinary code."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, Self

import httpx

from innerloop import calls
from innerloop.calls import Call, Events
from innerloop.house import House
from innerloop.types import Adapted, Answer, Event, Item, Lesson, Prompt, SessionInfo, Token


class Client:
    """A connection to a server. Threads may share it."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 4,
    ) -> None:
        """``timeout_s`` bounds each attempt; a server that is away or busy is asked again.

        Raises:
            Invalid: the address has no ``http://`` or ``https://`` before it.
        """
        address = calls.checked_address(base_url)
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._http = httpx.Client(base_url=address, headers=headers, timeout=timeout_s)
        self._retries = retries

    def session(self, session_id: str) -> "Session":
        """A session by its id. It need not be there: it begins untaught with its first use."""
        return Session(self, session_id)

    def house(self, tenant: str | None = None) -> House:
        """What all sessions of the key's tenant begin with, or, for operators, of another's."""
        return House(self, tenant)

    def new_session(
        self,
        session_id: str | None = None,
        *,
        fork: str | None = None,
        version: int | None = None,
        house: bool = True,
    ) -> "Session":
        """Make a session, taught what the session ``fork`` (or a version of it) was;
        without ``house`` it does without the tenant's house.

        Raises:
            Conflict: there is one of that id; where an earlier attempt was answered with 503 it may
                be this call's own. NotFound: nothing to fork from.
        """
        call = calls.make_session(session_id, fork, version, house)
        self.call(call)
        return Session(self, str(call.body["session_id"]))

    def sessions(self, *, contains: str = "", taught: bool | None = None) -> Iterator[SessionInfo]:
        """The tenant's sessions by name: all, those with ``contains`` in it, (un)taught ones."""
        pages = partial(calls.sessions, contains, taught)
        yield from map(SessionInfo.read, self.rows(pages, "sessions"))

    def import_session(self, content: bytes, session_id: str | None = None) -> "Session":
        """Make a session that is served with the adapter in a PEFT zip, and is not taught.

        Raises:
            Invalid: the server refuses the zip. Conflict: as of `new_session`.
        """
        call = calls.import_session(session_id, content)
        self.call(call)
        return Session(self, str(call.query["session_id"]))

    def export(
        self, session_id: str, *, version: int | None = None, tenant: str | None = None
    ) -> bytes:
        """A session's adapter as a PEFT zip; for operators.

        Raises:
            NotFound: no such session or version. Conflict: it is untaught.
        """
        response = self._send(calls.export(session_id, version, tenant))
        assert response is not None
        return calls.read_bytes(response)

    def call(self, call: Call) -> Any:
        """Send a call, again where nobody answers or the server asks for it; gives its JSON.

        Raises:
            InnerloopError.
        """
        response = self._send(call)
        return None if response is None else calls.read(response)

    def _send(self, call: Call) -> httpx.Response | None:
        """The answer to a call; None where an earlier attempt turns out to have come through."""
        arrived = False  # an earlier attempt, as far as is known
        for attempt in range(self._retries + 1):
            response, failure = None, None
            try:
                response = self._http.request(**call.options())
                if arrived and response.status_code == call.done:
                    return None
                if not calls.asks_to_come_again(response):
                    return response
            except httpx.TransportError as error:
                failure = error
            arrived = arrived or calls.may_have_arrived(call, response, failure)
            if attempt < self._retries:
                time.sleep(calls.pause_s(attempt, response))
        if response is not None:
            return response
        assert failure is not None
        raise calls.unreachable(failure) from failure

    def rows(self, page: Callable[[int], Call], field: str) -> Iterator[dict[str, Any]]:
        """All that a list holds: its pages' ``field``; ``page`` is the call for one, by offset."""
        offset = 0
        while True:
            found = self.call(page(offset))
            yield from found[field]
            offset += calls.PAGE
            if offset >= found["total"]:
                return

    def stream(self, call: Call) -> Iterator[str]:
        """Send a call once and give its answer's text as it comes."""
        try:
            timeout = calls.timeout(call, self._http.timeout)
            with self._http.stream(**call.options(), timeout=timeout) as response:
                if not response.is_success:
                    response.read()
                    calls.read(response)
                yield from response.iter_text()
        except httpx.TransportError as error:
            raise calls.unreachable(error) from error

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Session:
    """One session: teach it, ask it. Every method raises InnerloopError."""

    def __init__(self, client: Client, session_id: str) -> None:
        """Nothing is sent yet."""
        self._client = client
        self.id = session_id

    def adapt(
        self,
        lessons: Iterable[Lesson],
        *,
        steps: int | None = None,
        dry_run: bool = False,
        idempotency_key: str | None = None,
    ) -> Adapted:
        """Learn from examples, preferences or (prompt, answer) pairs.

        A key is drawn where none is given, so that a retry teaches once.
        """
        call = calls.adapt(self.id, lessons, steps, dry_run, idempotency_key)
        return Adapted.read(self._client.call(call))

    def generate(self, prompt: Prompt, **options: Any) -> Answer:
        """Answer a prompt or a chat; ``options`` are those of ``POST /generate``."""
        return Answer.read(self._client.call(calls.generate(self.id, prompt, False, options)))

    def stream(self, prompt: Prompt, **options: Any) -> "Stream":
        """Answer piece by piece: iterate over the texts, then read ``answer``."""
        return Stream(self._client, calls.generate(self.id, prompt, True, options))

    def rate(
        self, completion: Answer | str, rating: Literal[1, -1], *, comment: str | None = None
    ) -> Adapted:
        """Say how good an answer was."""
        return self._feedback(completion, rating, None, comment)

    def correct(
        self, completion: Answer | str, correction: str, *, comment: str | None = None
    ) -> Adapted:
        """Say what an answer should have been."""
        return self._feedback(completion, None, correction, comment)

    def info(self) -> SessionInfo:
        """Where the session stands."""
        return SessionInfo.read(self._client.call(calls.session("GET", self.id)))

    def items(self) -> Iterator[Item]:
        """What it was told, by id."""
        pages = partial(calls.items, self.id)
        yield from map(Item.read, self._client.rows(pages, "items"))

    def events(self, *, after: str | None = None) -> Iterator[Event]:
        """What happens to it from now on, or after an event's id, until it is deleted.

        The first says where it stands. Waits for as long as nothing happens.
        """
        happenings = calls.Happenings()
        for piece in self._client.stream(calls.happenings(self.id, after)):
            yield from happenings.take(piece)

    def forget(self, item: Item | int) -> None:
        """Forget an item exactly, as if it had never come."""
        number = item if isinstance(item, int) else item.id
        self._client.call(calls.session("DELETE", self.id, "feedback", number))

    def token(self, *, expires_in_s: int = 900, scopes: Sequence[str] | None = None) -> Token:
        """Make a token for a browser: it opens this session and nothing else.

        ``scopes`` are some of generate, teach, read and delete; all of them for None.
        """
        call = calls.make_token(self.id, expires_in_s, scopes)
        return Token.read(self._client.call(call))

    def delete(self) -> None:
        """Delete the session with everything that belongs to it."""
        self._client.call(calls.session("DELETE", self.id))

    def _feedback(
        self,
        completion: Answer | str,
        rating: int | None,
        correction: str | None,
        comment: str | None,
    ) -> Adapted:
        call = calls.feedback(completion, rating, correction, comment)
        return Adapted.read(self._client.call(call))


class Stream:
    """An answer as it is written."""

    def __init__(self, client: Client, call: Call) -> None:
        """Nothing is sent before it is iterated over."""
        self._client = client
        self._call = call
        self._events = Events()

    def __iter__(self) -> Iterator[str]:
        for piece in self._client.stream(self._call):
            yield from self._events.take(piece)
        self._events.end()

    @property
    def answer(self) -> Answer:
        """The whole answer, once all pieces came."""
        return self._events.end()
