"""The client for asyncio: the same as `innerloop.sync`, awaited."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, Self

import httpx

from innerloop import calls
from innerloop.calls import Call, Events
from innerloop.house import AsyncHouse
from innerloop.types import Adapted, Answer, Event, Item, Lesson, Prompt, SessionInfo, Token


class AsyncClient:
    """A connection to a server, for one event loop."""

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
        self._http = httpx.AsyncClient(base_url=address, headers=headers, timeout=timeout_s)
        self._retries = retries

    def session(self, session_id: str) -> "AsyncSession":
        """A session by its id. It need not be there: it begins untaught with its first use."""
        return AsyncSession(self, session_id)

    def house(self, tenant: str | None = None) -> AsyncHouse:
        """What all sessions of the key's tenant begin with, or, for operators, of another's."""
        return AsyncHouse(self, tenant)

    async def new_session(
        self,
        session_id: str | None = None,
        *,
        fork: str | None = None,
        version: int | None = None,
        house: bool = True,
    ) -> "AsyncSession":
        """Make a session, taught what the session ``fork`` (or a version of it) was;
        without ``house`` it does without the tenant's house.

        Raises:
            Conflict: there is one of that id; where an earlier attempt was answered with 503 it may
                be this call's own. NotFound: nothing to fork from.
        """
        call = calls.make_session(session_id, fork, version, house)
        await self.call(call)
        return AsyncSession(self, str(call.body["session_id"]))

    async def sessions(
        self, *, contains: str = "", taught: bool | None = None
    ) -> AsyncIterator[SessionInfo]:
        """The tenant's sessions by name: all, those with ``contains`` in it, (un)taught ones."""
        pages = partial(calls.sessions, contains, taught)
        async for session in self.rows(pages, "sessions"):
            yield SessionInfo.read(session)

    async def import_session(self, content: bytes, session_id: str | None = None) -> "AsyncSession":
        """Make a session that is served with the adapter in a PEFT zip, and is not taught.

        Raises:
            Invalid: the server refuses the zip. Conflict: as of `new_session`.
        """
        call = calls.import_session(session_id, content)
        await self.call(call)
        return AsyncSession(self, str(call.query["session_id"]))

    async def export(
        self, session_id: str, *, version: int | None = None, tenant: str | None = None
    ) -> bytes:
        """A session's adapter as a PEFT zip; for operators.

        Raises:
            NotFound: no such session or version. Conflict: it is untaught.
        """
        response = await self._send(calls.export(session_id, version, tenant))
        assert response is not None
        return calls.read_bytes(response)

    async def call(self, call: Call) -> Any:
        """Send a call, again where nobody answers or the server asks for it; gives its JSON.

        Raises:
            InnerloopError.
        """
        response = await self._send(call)
        return None if response is None else calls.read(response)

    async def _send(self, call: Call) -> httpx.Response | None:
        """The answer to a call; None where an earlier attempt turns out to have come through."""
        arrived = False  # an earlier attempt, as far as is known
        for attempt in range(self._retries + 1):
            response, failure = None, None
            try:
                response = await self._http.request(**call.options())
                if arrived and response.status_code == call.done:
                    return None
                if not calls.asks_to_come_again(response):
                    return response
            except httpx.TransportError as error:
                failure = error
            arrived = arrived or calls.may_have_arrived(call, response, failure)
            if attempt < self._retries:
                await asyncio.sleep(calls.pause_s(attempt, response))
        if response is not None:
            return response
        assert failure is not None
        raise calls.unreachable(failure) from failure

    async def rows(self, page: Callable[[int], Call], field: str) -> AsyncIterator[dict[str, Any]]:
        """All that a list holds: its pages' ``field``; ``page`` is the call for one, by offset."""
        offset = 0
        while True:
            found = await self.call(page(offset))
            for row in found[field]:
                yield row
            offset += calls.PAGE
            if offset >= found["total"]:
                return

    async def stream(self, call: Call) -> AsyncIterator[str]:
        """Send a call once and give its answer's text as it comes."""
        try:
            timeout = calls.timeout(call, self._http.timeout)
            async with self._http.stream(**call.options(), timeout=timeout) as response:
                if not response.is_success:
                    await response.aread()
                    calls.read(response)
                async for text in response.aiter_text():
                    yield text
        except httpx.TransportError as error:
            raise calls.unreachable(error) from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class AsyncSession:
    """One session: teach it, ask it. Every method raises InnerloopError."""

    def __init__(self, client: AsyncClient, session_id: str) -> None:
        """Nothing is sent yet."""
        self._client = client
        self.id = session_id

    async def adapt(
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
        return Adapted.read(await self._client.call(call))

    async def generate(self, prompt: Prompt, **options: Any) -> Answer:
        """Answer a prompt or a chat; ``options`` are those of ``POST /generate``."""
        return Answer.read(await self._client.call(calls.generate(self.id, prompt, False, options)))

    def stream(self, prompt: Prompt, **options: Any) -> "AsyncStream":
        """Answer piece by piece: iterate over the texts, then read ``answer``."""
        return AsyncStream(self._client, calls.generate(self.id, prompt, True, options))

    async def rate(
        self, completion: Answer | str, rating: Literal[1, -1], *, comment: str | None = None
    ) -> Adapted:
        """Say how good an answer was."""
        return await self._feedback(completion, rating, None, comment)

    async def correct(
        self, completion: Answer | str, correction: str, *, comment: str | None = None
    ) -> Adapted:
        """Say what an answer should have been."""
        return await self._feedback(completion, None, correction, comment)

    async def info(self) -> SessionInfo:
        """Where the session stands."""
        return SessionInfo.read(await self._client.call(calls.session("GET", self.id)))

    async def items(self) -> AsyncIterator[Item]:
        """What it was told, by id."""
        async for item in self._client.rows(partial(calls.items, self.id), "items"):
            yield Item.read(item)

    async def events(self, *, after: str | None = None) -> AsyncIterator[Event]:
        """What happens to it from now on, or after an event's id, until it is deleted.

        The first says where it stands. Waits for as long as nothing happens.
        """
        happenings = calls.Happenings()
        async for piece in self._client.stream(calls.happenings(self.id, after)):
            for event in happenings.take(piece):
                yield event

    async def forget(self, item: Item | int) -> None:
        """Forget an item exactly, as if it had never come."""
        number = item if isinstance(item, int) else item.id
        await self._client.call(calls.session("DELETE", self.id, "feedback", number))

    async def token(self, *, expires_in_s: int = 900, scopes: Sequence[str] | None = None) -> Token:
        """Make a token for a browser: it opens this session and nothing else.

        ``scopes`` are some of generate, teach, read and delete; all of them for None.
        """
        call = calls.make_token(self.id, expires_in_s, scopes)
        return Token.read(await self._client.call(call))

    async def delete(self) -> None:
        """Delete the session with everything that belongs to it."""
        await self._client.call(calls.session("DELETE", self.id))

    async def _feedback(
        self,
        completion: Answer | str,
        rating: int | None,
        correction: str | None,
        comment: str | None,
    ) -> Adapted:
        call = calls.feedback(completion, rating, correction, comment)
        return Adapted.read(await self._client.call(call))


class AsyncStream:
    """An answer as it is written."""

    def __init__(self, client: AsyncClient, call: Call) -> None:
        """Nothing is sent before it is iterated over."""
        self._client = client
        self._call = call
        self._events = Events()

    async def __aiter__(self) -> AsyncIterator[str]:
        async for piece in self._client.stream(self._call):
            for text in self._events.take(piece):
                yield text
        self._events.end()

    @property
    def answer(self) -> Answer:
        """The whole answer, once all pieces came."""
        return self._events.end()
