"""Sessions by name and by page, and their deletion; completions and the event log.

It knows which sessions there are, not what they were taught.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from server.sessions import codec, scripts, timeline
from server.sessions.errors import CompletionNotFound, StoreCorrupt
from server.sessions.keys import INDEX_GRACE_S, parse_reference, unquoted
from server.sessions.room import Room
from server.sessions.timeline import SCANNED, Reference
from server.sessions.types import HOUSE, Completion, Event, Pointer, SessionPage, SessionSort

logger = logging.getLogger(__name__)

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
    if taught is None and (sort == "updated_at" or sort == "created_at"):
        tenants = await _tenants(room, tenant)
        if await timeline.place(room, tenants):
            return await timeline.page(
                room,
                tenants,
                offset=offset,
                limit=limit,
                contains=contains,
                sort=sort,
                descending=descending,
            )
    named = [name for name in await _indexed(room, tenant) if contains in name[1]]
    if taught is None and sort == "session_id":
        # Names alone decide, so that only the page itself has to be read.
        named.sort(key=lambda name: (name[1], name[0]), reverse=descending)
        page = await timeline.pointers(room, named[offset : offset + limit])
        return SessionPage(len(named), tuple(page))
    found = [
        p
        for p in await timeline.pointers(room, named)
        if taught is None or taught == (p.version > 0)
    ]
    found.sort(key=lambda p: (p.tenant, p.session_id))
    found.sort(key=_SORT_KEYS[sort], reverse=descending)
    return SessionPage(len(found), tuple(found[offset : offset + limit]))


async def pending_sessions(room: Room, idle_s: float) -> tuple[Pointer, ...]:
    """See `SessionStore.pending_sessions`."""
    read, key = room.connection.read, room.keys.pending
    now_s = await room.connection.now(key)
    members = await read("ZRANGEBYSCORE", key, "-inf", int((now_s - idle_s) * 1000))
    # What is named in the future was named before the clock of Redis was set back.
    members += await read("ZRANGEBYSCORE", key, f"({int((now_s + idle_s) * 1000)}", "+inf")
    names = [parse_reference(member.decode()) for member in members]
    pointers = {(p.tenant, p.session_id): p for p in await timeline.pointers(room, names)}
    finished = [
        member
        for member, name in zip(members, names, strict=True)
        if name not in pointers or not pointers[name].unfinished
    ]
    if finished:
        oldest_ms = int((now_s - INDEX_GRACE_S) * 1000)
        await room.connection.run(scripts.PRUNE, [key], [oldest_ms, *finished], confirmed=False)
    return tuple(p for p in pointers.values() if p.unfinished)


async def expire(room: Room, lifetime_s: float) -> int:
    """See `SessionStore.expire`."""
    # Both clocks have to say so: one that was set ahead must not delete everything.
    before_s = min(await room.connection.now(room.keys.tenants), time.time()) - lifetime_s
    gone, tenants = 0, await _tenants(room, None)
    placed = await timeline.place(room, tenants)
    if placed:
        names = await timeline.unused(room, tenants, before_s)
    else:
        names = await _indexed(room, None)
    settled = placed and lifetime_s > INDEX_GRACE_S  # else a name may be that of one under way
    for name in names:
        try:
            pointer = await room.pointer(*name)
            if pointer.exists and pointer.used_at < before_s:
                gone += await delete(room, *name, int(before_s * 1000))
            elif settled and not pointer.exists:
                await room.unindex(*name)
        except StoreCorrupt as error:  # one that cannot be read must not keep all others
            logger.warning("session %s cannot expire: %s", name[1], error)
    return gone


async def delete(
    room: Room, tenant: str, session_id: str, unused_since_ms: int | None = None
) -> bool:
    """See `SessionStore.delete`; with a time, only a session that was not used since."""
    session = room.keys.session(tenant, session_id)
    existed, *completions = await room.connection.run(
        scripts.DELETE,
        [*session.scripted(), session.completions, session.tokens],
        [session.root, "" if unused_since_ms is None else unused_since_ms],
    )
    if unused_since_ms is not None and not existed:
        return False
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


async def events_after(
    room: Room, tenant: str, session_id: str, after: str, limit: int
) -> tuple[str, tuple[Event, ...]]:
    """See `SessionStore.events_after`."""
    session = room.keys.session(tenant, session_id)
    incarnation, found = await room.connection.read_batch(
        [
            ("HGET", session.meta, "incarnation"),
            ("XRANGE", session.events, f"({after}", "+", "COUNT", limit),
        ],
        atomic=True,
    )
    return (incarnation or b"").decode(), tuple(codec.event(name, fields) for name, fields in found)


async def save_completion(
    room: Room,
    tenant: str,
    session_id: str,
    completion_id: str,
    payload: Mapping[str, Any],
    lifetime_s: int,
    incarnation: str,
) -> bool:
    """See `SessionStore.save_completion`."""
    session = room.keys.session(tenant, session_id)
    text = codec.dump({"session_id": session_id, "payload": dict(payload)})
    key, keys = room.keys.completion(tenant, completion_id), (session.completions, session.meta)
    # In a Cluster it is on another node than its session, where it is named once it is written: a
    # deletion before that keeps it from being named, and one after that finds it by its name.
    _, named = await room.connection.read_batch(
        [
            ("SET", key, text, "EX", lifetime_s),
            (
                "EVAL",
                scripts.KEEP_COMPLETION,
                len(keys),
                *keys,
                completion_id,
                lifetime_s,
                incarnation,
            ),
        ]
    )
    if not named:
        await room.connection.read("UNLINK", key)
    return bool(named)


async def completion(room: Room, tenant: str, completion_id: str) -> Completion:
    """See `SessionStore.completion`."""
    key = room.keys.completion(tenant, completion_id)
    text = await room.connection.read("GET", key)
    if text is None:
        raise CompletionNotFound.of(completion_id)
    fields = codec.load(text)
    return Completion(completion_id, fields["session_id"], fields["payload"])


async def tenant_sessions(room: Room, tenant: str) -> list[str]:
    """The ids of a tenant's sessions, some of which may be gone; its house is none of them."""
    return [session_id for _, session_id in await _indexed(room, tenant)]


async def tenants_of(room: Room, session_id: str) -> tuple[str, ...]:
    """Find the tenants that have a session of that name."""
    tenants = sorted(await _tenants(room, None))
    found = await timeline.pointers(room, [(tenant, session_id) for tenant in tenants])
    return tuple(pointer.tenant for pointer in found)


async def _tenants(room: Room, tenant: str | None) -> list[str]:
    if tenant is not None:
        return [tenant]
    members = await room.connection.read("SMEMBERS", room.keys.tenants)
    return [unquoted(member.decode()) for member in members]


async def _indexed(room: Room, tenant: str | None) -> list[Reference]:
    read = room.connection.read
    names: dict[Reference, None] = {}  # a scan may tell a member twice
    for name in await _tenants(room, tenant):
        cursor, more = 0, True
        while more:
            # All at once may take longer than a command may, and holds Redis up for everybody.
            cursor, members = await read("SSCAN", room.keys.index(name), cursor, "COUNT", SCANNED)
            names |= dict.fromkeys((name, unquoted(member.decode())) for member in members)
            more = cursor != 0
    return [name for name in names if name[1] != HOUSE]
