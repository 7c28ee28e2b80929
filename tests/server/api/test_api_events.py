"""`GET /sessions/{id}/events`: a session's log as it happens."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from api_calls import EXAMPLES, ask, ok, problem, teach
from redis_process import until
from server_harness import LiveServer

from server.flows.watching import SESSION_WATCHERS_MAX, TooManyWatchers, Watching
from server.sessions import SessionStore

Told = tuple[str | None, str, dict[str, Any]]


@contextmanager
def listening(
    http: httpx.Client, session: str, after: str | None = None
) -> Iterator[Callable[[], Told | None]]:
    """Reads one event after the other: its id, name and data; None at the end."""
    headers = {} if after is None else {"Last-Event-ID": after}
    with http.stream("GET", f"/sessions/{session}/events", headers=headers) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.iter_lines()

        def read() -> Told | None:
            fields: dict[str, str] = {}
            for line in lines:
                if line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif "event" in fields:
                    return fields.get("id"), fields["event"], json.loads(fields["data"])
            return None

        yield read


def names(read: Callable[[], Told | None], last: str) -> list[str]:
    found = []
    while not found or found[-1] != last:
        told = read()
        assert told is not None
        found.append(told[1])
    return found


def all_left(live: LiveServer, http: httpx.Client) -> None:
    """Wait until the server has noticed that nobody listens any more."""

    def none() -> bool:
        ok(http.get("/healthz"))
        return not live.runtime.watching.count

    until(none)


def test_a_life_is_told(http: httpx.Client, session: str) -> None:
    with listening(http, session) as read:
        assert read() == ("0-0", "ready", {"session_id": session, "adapter_version": 0})
        taught = teach(http, session)
        assert names(read, "feedback") == ["created", "feedback"]
        told = read()
        assert told is not None
        place, name, data = told
        assert name == "adapted"
        assert data["session_id"] == session
        assert data["adapter_version"] == taught["adapter_version"] == 1
        assert data["items"] == taught["items"]
        assert data["from_version"] == 0
        ok(http.post(f"/admin/sessions/{session}/rollback", json={"adapter_version": 0}))
        ok(http.post(f"/admin/sessions/{session}/pin", json={"pinned": True}))
        assert names(read, "pinned") == ["rolled_back", "pinned"]
        http.delete(f"/sessions/{session}/feedback/1").raise_for_status()
        assert names(read, "forgotten") == ["forgotten"]
        # Who was away is told what it missed, then goes on.
        with listening(http, session, place) as late:
            ready = late()
            assert ready is not None
            assert ready[:2] == (place, "ready")
            assert names(late, "forgotten") == ["rolled_back", "pinned", "forgotten"]
            http.delete(f"/sessions/{session}").raise_for_status()
            assert names(late, "deleted") == ["deleted"]
            assert late() is None
        assert names(read, "deleted") == ["deleted"]
        assert read() is None
    gone = http.get(f"/sessions/{session}/events", headers={"Last-Event-ID": place or ""})
    assert gone.status_code == 204


def test_a_session_that_was_brought_along_and_its_fork(
    http: httpx.Client, new_session: Callable[[], str]
) -> None:
    source, brought, copy = new_session(), new_session(), new_session()
    teach(http, source)
    content = http.get(f"/admin/sessions/{source}/export").content
    with listening(http, brought) as read:
        read()
        zipped = {"Content-Type": "application/zip"}
        url = f"/sessions?session_id={brought}"
        ok(http.post(url, content=content, headers=zipped), 201)
        told = read()
        assert told is not None
        _, name, data = told
        assert (name, data["adapter_version"]) == ("imported", 1)
        assert data["from"] == f"an export of session {source!r}, version 1"
        ok(http.post(f"/admin/sessions/{brought}/reset"))
        told = read()
        assert told is not None
        assert (told[1], told[2]["adapter_version"], told[2]["from_version"]) == ("reset", 0, 1)
    fork = {"session_id": brought, "adapter_version": 1}
    ok(http.post("/sessions", json={"session_id": copy, "fork": fork}), 201)
    with listening(http, copy, "0-0") as read:
        read()
        told = read()
        assert told is not None
        assert (told[1], told[2]["from"]) == ("imported", f"version 1 of session {brought}")


def test_other_sessions_and_other_replicas(
    live: LiveServer, http: httpx.Client, new_session: Callable[[], str]
) -> None:
    session, other = new_session(), new_session()
    pool = live.runtime.store._room.connection.link.pool

    async def elsewhere() -> None:
        """What another server on the same Redis does."""
        url = f"unix://{pool.connection_kwargs['path']}"
        async with await SessionStore.open(url) as store:
            await store.create("default", session)
            await store.pin("default", session, True)

    with listening(http, session) as read:
        read()
        ask(http, other)
        live.call(elsewhere())
        assert names(read, "pinned") == ["created", "pinned"]
    with listening(live.client(1, headers={"Authorization": "Bearer acme-key"}), session) as read:
        told = read()
        assert told is not None
        assert told[0] == "0-0"  # another tenant's session of that name: untouched


def test_listeners_leave_and_are_bounded(
    live: LiveServer, http: httpx.Client, session: str
) -> None:
    watching = live.runtime.watching
    most = watching._most
    all_left(live, http)
    with listening(http, session) as read:
        read()
        assert watching.count == 1
        watching._most = 1
        try:
            refused = http.get(f"/sessions/{session}/events")
        finally:
            watching._most = most
        problem(refused, 503)
    all_left(live, http)


def test_heartbeats_and_the_end_of_the_server(live: LiveServer, session: str) -> None:
    async def listen() -> list[str]:
        watching, told = Watching(live.runtime.store, heartbeat_s=0.0), []
        async for one in watching.watch("default", session, None):
            told.append(type(one).__name__)
            if len(told) == 3:
                watching.close()
        assert watching.count == 0
        return told

    assert live.call(listen()) == ["Standing", "NoneType", "NoneType"]


@pytest.mark.parametrize("place", ["now", "-1", "1", "1-2-3"])
def test_places_that_are_none(http: httpx.Client, session: str, place: str) -> None:
    headers = {"Last-Event-ID": place}
    problem(http.get(f"/sessions/{session}/events", headers=headers), 422)


def test_a_refused_item_says_why(http: httpx.Client, session: str) -> None:
    teach(http, session, EXAMPLES[:1])
    with listening(http, session) as read:
        ready = read()
        assert ready is not None
        assert ready[2]["adapter_version"] == 1
        ok(http.post(f"/admin/sessions/{session}/reset"))
        told = read()
        assert told is not None
        assert told[1] == "reset"
        assert told[2]["adapter_version"] == 0
        assert told[2]["refused"] == [1]


def test_a_stream_ends_with_its_token(
    enter: Callable[..., httpx.Client], guarded: LiveServer, session: str
) -> None:
    acme = enter("acme-key")
    teach(acme, session)
    made = ok(acme.post(f"/sessions/{session}/tokens"), 201)
    connection = guarded.runtime.store._room.connection
    tokens = guarded.runtime.store._room.keys.session("acme", session).tokens
    with listening(enter(made["token"]), session) as read:
        assert names(read, "ready") == ["ready"]
        # Its time, which is moved here instead of waited for.
        (name,) = guarded.call(connection.read("HKEYS", tokens))
        record = guarded.call(connection.read("HGET", tokens, name))
        past = re.sub(rb'_ms":\d+', b'_ms":1', record)
        guarded.call(connection.write("HSET", tokens, name, past))
        ok(acme.post("/adapt", json={"session_id": session, "examples": EXAMPLES[:1]}))
        told = read()
        assert told is not None
        assert (told[1], told[2]["status"]) == ("error", 401)
        assert read() is None


def test_nobody_takes_all_places(live: LiveServer, session: str) -> None:
    async def listen() -> None:
        watching = Watching(live.runtime.store)
        open_now = [watching.watch("default", session, None) for _ in range(SESSION_WATCHERS_MAX)]
        for one in open_now:
            await anext(one)
        with pytest.raises(TooManyWatchers, match="8 listeners"):
            await anext(watching.watch("default", session, None))
        await anext(watching.watch("default", f"{session}-other", None))
        for one in open_now:
            await one.aclose()
        assert watching.count == 1

    live.call(listen())
