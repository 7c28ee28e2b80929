"""The versions of a session: promote a candidate, roll back, and reading versions back.

It does not know what the bytes of a snapshot mean.
"""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from server.sessions import codec
from server.sessions import version_scripts as scripts
from server.sessions.errors import (
    SessionPinned,
    SnapshotLost,
    StoreUnavailable,
    VersionConflict,
    VersionNotFound,
)
from server.sessions.feedback import csv, exists
from server.sessions.keys import CANDIDATE_LIFETIME_S
from server.sessions.room import Room, gone
from server.sessions.types import Pointer, Version, VersionRecord, called


async def promote(
    room: Room,
    expected: Pointer,
    snapshot: bytes,
    record: VersionRecord,
    *,
    refused_ids: Sequence[int],
    refused_reason: str,
    idempotency_key: str | None,
    answer: Mapping[str, Any] | None,
    history: int,
    snapshots: int,
    unless_pinned: bool,
    in_force: bool,
) -> int:
    """See `SessionStore.promote`."""
    session = room.keys.session(expected.tenant, expected.session_id)
    snapshot_id = secrets.token_hex(16)
    candidate = session.snapshot(snapshot_id)
    args: list[str | int] = [
        expected.incarnation,
        expected.version,
        session.root,
        snapshot_id,
        len(snapshot),
        record.base_fingerprint,
        csv(record.item_ids),
        codec.dump_record(record),
        csv(refused_ids),
        refused_reason,
        idempotency_key or "",
        "" if answer is None else codec.dump(answer),
        history,
        snapshots,
        2 if in_force else int(unless_pinned),
        record.house,
    ]
    if not expected.exists:
        raise gone(expected.session_id)
    reply = await room.connection.run(
        scripts.PROMOTE,
        [*session.scripted(), candidate],
        args,
        before=[
            ("SET", candidate, snapshot, "EX", CANDIDATE_LIFETIME_S),
            room.touch(expected.tenant, expected.session_id),
        ],
    )
    _check(reply, expected)
    return int(reply[2])


async def adopt(
    room: Room,
    tenant: str,
    session_id: str,
    snapshot: bytes,
    record: VersionRecord,
    origin: str,
    alone: bool,
) -> None:
    """See `SessionStore.adopt`."""
    session, snapshot_id = room.keys.session(tenant, session_id), secrets.token_hex(16)
    args: list[str | int | bytes] = [
        secrets.token_hex(8),
        session.root,
        snapshot_id,
        snapshot,
        record.base_fingerprint,
        codec.dump_record(record),
        origin,
        int(alone),
    ]
    word, now, *_ = await room.connection.run(
        scripts.ADOPT,
        [*session.scripted(), session.snapshot(snapshot_id)],
        args,
        before=room.announcement(tenant, session_id),
    )
    if word == b"exists":
        raise exists(session_id)
    await room.announce(tenant, session_id, (now, now))


async def restore(room: Room, pointer: Pointer, number: int, snapshot: bytes) -> None:
    """See `SessionStore.restore`."""
    session = room.keys.session(pointer.tenant, pointer.session_id)
    known = await version(room, pointer.tenant, pointer.session_id, number)
    word, *_ = await room.connection.run(
        scripts.RESTORE,
        [*session.scripted(), session.snapshot(known.snapshot_id)],
        [pointer.incarnation, number, known.snapshot_id, snapshot],
    )
    if word == b"gone":
        raise gone(pointer.session_id)
    if word == b"absent":
        raise _no_version(pointer.session_id, number)


async def promote_untaught(
    room: Room, expected: Pointer, refused_ids: Sequence[int], refused_reason: str
) -> None:
    """See `SessionStore.promote_untaught`."""
    session = room.keys.session(expected.tenant, expected.session_id)
    args: list[str | int] = [
        expected.incarnation,
        expected.version,
        session.root,
        csv(refused_ids),
        refused_reason,
    ]
    reply = await room.connection.run(
        scripts.PROMOTE_UNTAUGHT,
        session.scripted(),
        args,
        before=[room.touch(expected.tenant, expected.session_id)],
    )
    _check(reply, expected)


def _check(reply: Sequence[Any], expected: Pointer) -> None:
    word, _, *rest = reply
    if word == b"gone":
        raise gone(expected.session_id)
    if word == b"lost":
        raise StoreUnavailable("Redis lost the candidate before it was promoted; adapt again")
    if word == b"moved":
        raise VersionConflict(
            f"session {expected.session_id!r} is at version {rest[0]}, not {expected.version} "
            "any more; derive again from its log"
        )
    if word == b"pinned":
        raise SessionPinned(f"session {expected.session_id!r} is pinned at version {rest[0]}")
    if word == b"changed":
        raise VersionConflict(
            f"item {rest[0]} of session {expected.session_id!r} is {rest[1].decode()} now; "
            "derive again from the log"
        )
    if word == b"taught":
        raise VersionConflict(
            f"session {expected.session_id!r} has {rest[0]} items to derive from; derive from them"
        )


async def rollback(
    room: Room, tenant: str, session_id: str, to_version: int, reason: str, event: str
) -> Pointer:
    """See `SessionStore.rollback`."""
    session = room.keys.session(tenant, session_id)
    word, _, *rest = await room.connection.run(
        scripts.ROLLBACK,
        session.scripted(),
        [to_version, reason, event, session.root],
        before=[room.touch(tenant, session_id)],
    )
    if word == b"gone":
        raise gone(session_id)
    if word == b"absent":
        raise _no_version(session_id, to_version)
    if word == b"forgotten":
        raise VersionNotFound(
            f"version {to_version} of {called(session_id)} contains item {rest[0]}, which was "
            "forgotten; roll back to another version"
        )
    return await room.pointer(tenant, session_id)


async def pin(room: Room, tenant: str, session_id: str, pinned: bool, house: str) -> Pointer:
    """See `SessionStore.pin`."""
    session = room.keys.session(tenant, session_id)
    word, *_ = await room.connection.run(
        scripts.PIN,
        session.scripted(),
        [int(pinned), house],
        before=[room.touch(tenant, session_id)],
    )
    if word == b"gone":
        raise gone(session_id)
    return await room.pointer(tenant, session_id)


async def version(room: Room, tenant: str, session_id: str, number: int) -> Version:
    """See `SessionStore.version`."""
    key = room.keys.session(tenant, session_id).versions
    envelope = await room.connection.read("HGET", key, number)
    if envelope is None:
        raise _no_version(session_id, number)
    return codec.version(number, envelope)


async def versions(room: Room, tenant: str, session_id: str) -> tuple[Version, ...]:
    """See `SessionStore.versions`."""
    key = room.keys.session(tenant, session_id).versions
    found = await room.connection.read("HGETALL", key)
    return tuple(codec.version(int(n), found[n]) for n in sorted(found, key=int))


async def snapshot(room: Room, tenant: str, session_id: str, number: int) -> bytes:
    """See `SessionStore.snapshot`."""
    known = await version(room, tenant, session_id, number)
    key = room.keys.session(tenant, session_id).snapshot(known.snapshot_id)
    found: bytes | None = await room.connection.read("GET", key)
    if found is not None:
        return found
    await version(room, tenant, session_id, number)  # trimmed meanwhile: say that instead
    raise SnapshotLost(
        f"version {number} of session {session_id!r} is recorded but its bytes are gone from "
        "Redis; derive it again from the log"
    )


def _no_version(session_id: str, number: int) -> VersionNotFound:
    return VersionNotFound(
        f"{called(session_id)} has no version {number} (any more): its versions are listed with it"
    )
