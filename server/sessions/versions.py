"""The versions of a session: promote a candidate, roll back, and reading versions back.

It does not know what the bytes of a snapshot mean.
"""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from server.sessions import codec, scripts
from server.sessions.errors import (
    SnapshotLost,
    StoreUnavailable,
    VersionConflict,
    VersionNotFound,
)
from server.sessions.feedback import csv
from server.sessions.keys import CANDIDATE_LIFETIME_S
from server.sessions.room import Room, gone
from server.sessions.types import Pointer, Version, VersionRecord


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
    ]
    if not expected.exists:
        raise gone(expected.session_id)
    reply = await room.connection.run(
        scripts.PROMOTE,
        [*session.scripted(), candidate],
        args,
        before=[("SET", candidate, snapshot, "EX", CANDIDATE_LIFETIME_S)],
    )
    _check(reply, expected)
    return int(reply[2])


async def promote_untaught(room: Room, expected: Pointer) -> None:
    """See `SessionStore.promote_untaught`."""
    session = room.keys.session(expected.tenant, expected.session_id)
    args: list[str | int] = [expected.incarnation, expected.version, session.root]
    reply = await room.connection.run(scripts.PROMOTE_UNTAUGHT, session.scripted(), args)
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
        scripts.ROLLBACK, session.scripted(), [to_version, reason, event, session.root]
    )
    if word == b"gone":
        raise gone(session_id)
    if word == b"absent":
        raise _no_version(session_id, to_version)
    if word == b"forgotten":
        raise VersionNotFound(
            f"version {to_version} of session {session_id!r} contains item {rest[0]}, which was "
            "forgotten; roll back to another version"
        )
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
        f"session {session_id!r} has no version {number} (any more): "
        "its versions are listed with the session"
    )
