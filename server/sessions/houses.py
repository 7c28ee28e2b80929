"""A tenant's house beside its sessions: read with them, and what it forgets taken out of them.

The house lives on another node of a Cluster than the sessions, so no script sees both. A tenant is
named as unswept before its house forgets anything and until every session was looked at, so that a
crash in between leaves the name behind.
"""

import logging
from collections.abc import Collection, Mapping

from server.sessions import codec
from server.sessions import version_scripts as scripts
from server.sessions.directory import tenant_sessions
from server.sessions.errors import StoreCorrupt
from server.sessions.keys import quoted, unquoted
from server.sessions.room import Room
from server.sessions.types import HOUSE, Pointer, Version

logger = logging.getLogger(__name__)

_CHUNK = 100  # sessions whose versions are read in one go


async def standing(room: Room, tenant: str, session_id: str) -> tuple[Pointer, Pointer]:
    """See `SessionStore.standing`."""
    names = (session_id, HOUSE)
    commands = [("HMGET", room.keys.session(tenant, n).meta, *codec.META_FIELDS) for n in names]
    replies = await room.connection.read_batch(commands, atomic=False)
    own, house = (codec.pointer(tenant, n, r) for n, r in zip(names, replies, strict=True))
    return own, house


async def expect_sweep(room: Room, tenant: str) -> None:
    """See `SessionStore.expect_sweep`."""
    now_ms = int(await room.connection.now(room.keys.unswept) * 1000)
    await room.connection.read("ZADD", room.keys.unswept, now_ms, quoted(tenant))


async def unswept(room: Room, idle_s: float) -> tuple[str, ...]:
    """See `SessionStore.unswept`."""
    read, key = room.connection.read, room.keys.unswept
    now_s = await room.connection.now(key)
    members = await read("ZRANGEBYSCORE", key, "-inf", int((now_s - idle_s) * 1000))
    # What is named in the future was named before the clock of Redis was set back.
    members += await read("ZRANGEBYSCORE", key, f"({int((now_s + idle_s) * 1000)}", "+inf")
    return tuple(unquoted(member.decode()) for member in dict.fromkeys(members))


async def sweep(room: Room, tenant: str) -> int:
    """See `SessionStore.sweep`."""
    member = quoted(tenant)
    begun = await room.connection.read("ZSCORE", room.keys.unswept, member)
    house, gone = await _forgotten(room, tenant)
    found = 0
    names = await tenant_sessions(room, tenant)
    for start in range(0, len(names), _CHUNK):
        chunk = names[start : start + _CHUNK]
        commands = [("HGETALL", room.keys.session(tenant, name).versions) for name in chunk]
        replies = await room.connection.read_batch(commands, scattered=True)
        for session_id, envelopes in zip(chunk, replies, strict=True):
            try:
                if _containing(envelopes, house, gone):
                    found += await taint(room, tenant, session_id, house, gone)
            except StoreCorrupt as error:  # one that cannot be read answers nothing either
                logger.warning("session %s cannot be swept: %s", session_id, error)
    if begun is not None:  # what was forgotten since has named the tenant anew
        await room.connection.run(scripts.SWEPT, [room.keys.unswept], [member, repr(float(begun))])
    return found


async def taint_since(room: Room, tenant: str, session_id: str, house: Pointer) -> None:
    """See `SessionStore.taint_since`."""
    now = await room.pointer(tenant, HOUSE)
    if (now.incarnation, now.forgotten) != (house.incarnation, house.forgotten):
        await taint(room, tenant, session_id, *await _forgotten(room, tenant))


async def taint(
    room: Room, tenant: str, session_id: str, house: Pointer, gone: Collection[int]
) -> bool:
    """Delete the versions of a session that contain what its house has forgotten; the one in force
    is marked. Whether there were any."""
    session = room.keys.session(tenant, session_id)
    fields, envelopes = await room.connection.read_batch(
        [("HMGET", session.meta, *codec.META_FIELDS), ("HGETALL", session.versions)], atomic=True
    )
    pointer = codec.pointer(tenant, session_id, fields)
    numbers = _containing(envelopes, house, gone)
    if not numbers:
        return False
    await room.connection.run(
        scripts.TAINT,
        session.scripted(),
        [pointer.incarnation, session.root, ",".join(map(str, numbers))],
        before=[room.expectation(tenant, session_id)],
    )
    return True


def _containing(
    envelopes: Mapping[bytes, bytes], house: Pointer, gone: Collection[int]
) -> list[int]:
    """The versions among a session's that contain what its house has forgotten."""
    known = (codec.version(int(number), text) for number, text in envelopes.items())
    return [version.number for version in known if _contains(version, house, gone)]


def _contains(version: Version, house: Pointer, gone: Collection[int]) -> bool:
    record = version.record
    if not record.house:
        return False
    incarnation = record.house.partition(".")[0]
    return incarnation != house.incarnation or any(n in gone for n in record.house_items)


async def _forgotten(room: Room, tenant: str) -> tuple[Pointer, frozenset[int]]:
    """The house, and its items that are not to be found in anything any more."""
    keys = room.keys.session(tenant, HOUSE)
    fields, states = await room.connection.read_batch(
        [("HMGET", keys.meta, *codec.META_FIELDS), ("HGETALL", keys.items)], atomic=True
    )
    ids = (int(n) for n, state in states.items() if codec.load(state)["status"] == "forgotten")
    return codec.pointer(tenant, HOUSE, fields), frozenset(ids)
