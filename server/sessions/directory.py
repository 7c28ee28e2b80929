"""Sessions by name and by page, and their deletion; completions and the event log.

It knows which sessions there are, not what they were taught.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from server.sessions import codec, scripts
from server.sessions.errors import CompletionNotFound
from server.sessions.keys import INDEX_GRACE_S, parse_reference, unquoted
from server.sessions.room import Room
from server.sessions.types import Completion, Event, Pointer, SessionPage, SessionSort

_CHUNK = 200  # pointers asked for in one go

Reference = tuple[str, str]  # tenant, session id

_SORT_KEYS: Mapping[SessionSort, Callable[[Pointer], Any]] = {
    "updated_at": lambda pointer: pointer.updated_at,
    "created_at": lambda pointer: pointer.created_at,
    "session_id": lambda pointer: pointer.session_id,
    "version": lambda pointer: pointer.version,
    "items": lambda pointer: pointer.items,
}


async def sessions(
    room: Room,
    tenant: str | None,
    *,
    offset: int,
    limit: int,
    contains: str,
    taught: bool | None,
    sort: SessionSort,
    descending: bool,
) -> SessionPage:
    """See `SessionStore.sessions`."""
    named = [name for name in await _indexed(room, tenant) if contains in name[1]]
    if taught is None and sort == "session_id":
        # Names alone decide, so that only the page itself has to be read.
        named.sort(key=lambda name: (name[1], name[0]), reverse=descending)
        page = await _pointers(room, named[offset : offset + limit])
        return SessionPage(len(named), tuple(page))
    found = [p for p in await _pointers(room, named) if taught is None or taught == (p.version > 0)]
    found.sort(key=lambda p: (p.tenant, p.session_id))
    found.sort(key=_SORT_KEYS[sort], reverse=descending)
    return SessionPage(len(found), tuple(found[offset : offset + limit]))


async def pending_sessions(room: Room, idle_s: float) -> tuple[Pointer, ...]:
    """See `SessionStore.pending_sessions`."""
    read, key = room.connection.read, room.keys.pending
    now_s, _ = await read("TIME")
    members = await read("ZRANGEBYSCORE", key, "-inf", int((now_s - idle_s) * 1000) + 999)
    names = [parse_reference(member.decode()) for member in members]
    pointers = {(p.tenant, p.session_id): p for p in await _pointers(room, names)}
    finished = [
        member
        for member, name in zip(members, names, strict=True)
        if name not in pointers or not pointers[name].unfinished
    ]
    if finished:
        oldest_ms = (now_s - INDEX_GRACE_S) * 1000
        await room.connection.run(scripts.PRUNE, [key], [oldest_ms, *finished])
    return tuple(p for p in pointers.values() if p.unfinished)


async def delete(room: Room, tenant: str, session_id: str) -> bool:
    """See `SessionStore.delete`."""
    session = room.keys.session(tenant, session_id)
    existed, *completions = await room.connection.run(
        scripts.DELETE, [*session.scripted(), session.completions], [session.root]
    )
    for completion_id in completions:
        key = room.keys.completion(tenant, completion_id.decode())
        await room.connection.read("UNLINK", key)
    await room.unindex(tenant, session_id)
    return bool(existed)


async def events(room: Room, tenant: str, session_id: str, limit: int) -> tuple[Event, ...]:
    """See `SessionStore.events`."""
    key = room.keys.session(tenant, session_id).events
    found = await room.connection.read("XREVRANGE", key, "+", "-", "COUNT", limit)
    return tuple(codec.event(event_id, fields) for event_id, fields in found)


async def save_completion(
    room: Room,
    tenant: str,
    session_id: str,
    completion_id: str,
    payload: Mapping[str, Any],
    lifetime_s: int,
) -> None:
    """See `SessionStore.save_completion`."""
    session = room.keys.session(tenant, session_id)
    text = codec.dump({"session_id": session_id, "payload": dict(payload)})
    key, kept = room.keys.completion(tenant, completion_id), session.completions
    # Named in the session too, so that deleting the session finds it.
    await room.connection.read_batch(
        [
            ("EVAL", scripts.KEEP_COMPLETION, 1, kept, completion_id, lifetime_s),
            ("SET", key, text, "EX", lifetime_s),
        ],
        atomic=False,
    )


async def completion(room: Room, tenant: str, completion_id: str) -> Completion:
    """See `SessionStore.completion`."""
    key = room.keys.completion(tenant, completion_id)
    text = await room.connection.read("GET", key)
    if text is None:
        raise CompletionNotFound(
            f"completion {completion_id!r} is unknown or too old for feedback; "
            "send the prompt and the completion as a demonstration instead"
        )
    fields = codec.load(text)
    return Completion(completion_id, fields["session_id"], fields["payload"])


async def _indexed(room: Room, tenant: str | None) -> list[Reference]:
    read = room.connection.read
    if tenant is None:
        tenants = [
            unquoted(member.decode()) for member in await read("SMEMBERS", room.keys.tenants)
        ]
    else:
        tenants = [tenant]
    names = []
    for name in tenants:
        members = await read("SMEMBERS", room.keys.index(name))
        names += [(name, unquoted(member.decode())) for member in members]
    return names


async def _pointers(room: Room, names: Iterable[Reference]) -> list[Pointer]:
    """Read the pointers of those sessions that exist."""
    names, found = list(names), []
    for start in range(0, len(names), _CHUNK):
        chunk = names[start : start + _CHUNK]
        commands = [("HMGET", room.keys.session(*name).meta, *codec.META_FIELDS) for name in chunk]
        replies = await room.connection.read_batch(commands, atomic=False)
        found += [codec.pointer(*name, fields) for name, fields in zip(chunk, replies, strict=True)]
    return [pointer for pointer in found if pointer.exists]
