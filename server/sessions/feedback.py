"""The feedback log of a session: append, refuse, forget, and reading items back.

It does not know how items become an adapter, only which of them do.
"""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from server.sessions import codec, scripts
from server.sessions.errors import (
    IdempotencyConflict,
    ItemNotFound,
    SessionExists,
    SessionImported,
)
from server.sessions.keys import IDEMPOTENCY_LIFETIME_S
from server.sessions.room import Room, gone
from server.sessions.types import (
    LIVE,
    AppendResult,
    Derivation,
    ForgetResult,
    Item,
    NewItem,
    Pointer,
    called,
)


async def create(room: Room, tenant: str, session_id: str, only_new: bool, alone: bool) -> Pointer:
    """See `SessionStore.create`."""
    await append(room, tenant, session_id, (), None, "", only_new=only_new, alone=alone)
    return await room.pointer(tenant, session_id)


async def append(
    room: Room,
    tenant: str,
    session_id: str,
    items: Sequence[NewItem],
    idempotency_key: str | None,
    request_hash: str,
    *,
    origin: str = "",
    only_new: bool = False,
    alone: bool = False,
) -> AppendResult:
    """See `SessionStore.append`."""
    args: list[str | int] = [
        secrets.token_hex(8),
        idempotency_key or "",
        request_hash,
        IDEMPOTENCY_LIFETIME_S * 1000,
        origin,
        2 if alone else int(only_new),
        len(items),
    ]
    for item in items:
        args += [item.kind, item.prompt_key, codec.dump(item.payload), item.rated]
    keys = room.keys.session(tenant, session_id).scripted()
    word, now, *rest = await room.connection.run(
        scripts.APPEND, keys, args, before=room.announcement(tenant, session_id)
    )
    if word == b"exists":
        raise exists(session_id)
    if word == b"imported":
        raise not_taught(session_id)
    if word == b"conflict":
        raise _another_request()
    if word == b"repeat":
        return _earlier(codec.load(rest[0]), rest[1])
    first, last, made, incarnation = rest
    if made:
        await room.announce(tenant, session_id, (now, now))
    return AppendResult(_range(first, last), incarnation.decode())


async def repeated(
    room: Room, tenant: str, session_id: str, idempotency_key: str | None, request_hash: str
) -> AppendResult | None:
    """See `SessionStore.repeated`."""
    if idempotency_key is None:
        return None
    session = room.keys.session(tenant, session_id)
    incarnation, text = await room.connection.read_batch(
        [
            ("HGET", session.meta, "incarnation"),
            ("HGET", session.idempotency, idempotency_key),
        ],
        atomic=True,
    )
    if text is None:
        return None
    record = codec.load(text)
    if await room.connection.now(session.meta) - record["at"] / 1000 >= IDEMPOTENCY_LIFETIME_S:
        return None
    if record["hash"] != request_hash:
        raise _another_request()
    return _earlier(record, incarnation)


async def refuse(
    room: Room,
    tenant: str,
    session_id: str,
    item_ids: Sequence[int],
    reason: str,
    idempotency_key: str | None,
    answer: Mapping[str, Any] | None,
    incarnation: str,
) -> tuple[int, ...]:
    """See `SessionStore.refuse`."""
    settled = "" if answer is None else codec.dump(answer)
    args: list[str | int] = [incarnation, csv(item_ids), reason, idempotency_key or "", settled]
    keys = room.keys.session(tenant, session_id).scripted()
    word, _, *rest = await room.connection.run(
        scripts.REFUSE, keys, args, before=[room.touch(tenant, session_id)]
    )
    if word == b"gone":
        raise gone(session_id)
    return codec.numbers(rest[0])


async def settle(
    room: Room,
    tenant: str,
    session_id: str,
    idempotency_key: str,
    version: int,
    answer: Mapping[str, Any],
    incarnation: str,
) -> Mapping[str, Any] | None:
    """See `SessionStore.settle`."""
    keys = room.keys.session(tenant, session_id).scripted()
    args: list[str | int] = [incarnation, idempotency_key, version, codec.dump(answer)]
    word, _, *rest = await room.connection.run(scripts.SETTLE, keys, args)
    if word == b"gone":
        raise gone(session_id)
    (text,) = rest
    return _earlier(codec.load(text), incarnation.encode()).answer if text else None


async def forget(room: Room, tenant: str, session_id: str, item_id: int) -> ForgetResult:
    """See `SessionStore.forget`."""
    if not (await room.pointer(tenant, session_id)).exists:
        raise gone(session_id)
    session = room.keys.session(tenant, session_id)
    word, _, *rest = await room.connection.run(
        scripts.FORGET,
        session.scripted(),
        [item_id, session.root],
        before=[room.expectation(tenant, session_id), room.touch(tenant, session_id)],
    )
    if word == b"gone":
        raise gone(session_id)
    if word == b"absent":
        raise _no_item(session_id, item_id)
    restored, versions, active, again = rest
    return ForgetResult(
        item_id, codec.numbers(restored), codec.numbers(versions), active == 1, again == 1
    )


async def derivation(room: Room, tenant: str, session_id: str) -> Derivation:
    """See `SessionStore.derivation`."""
    keys = room.keys.session(tenant, session_id)
    fields, states, payloads = await room.connection.read_batch(
        [
            ("HMGET", keys.meta, *codec.META_FIELDS),
            ("HGETALL", keys.items),
            ("HGETALL", keys.payloads),
        ],
        atomic=True,
    )
    live = (n for n in sorted(states, key=int) if codec.status(int(n), states[n]) in LIVE)
    return Derivation(
        codec.pointer(tenant, session_id, fields),
        tuple(codec.item(int(n), states[n], payloads.get(n)) for n in live),
    )


async def items(
    room: Room, tenant: str, session_id: str, offset: int, limit: int
) -> tuple[Item, ...]:
    """See `SessionStore.items`."""
    known = await room.pointer(tenant, session_id)
    if not known.exists:
        raise gone(session_id)
    wanted = range(1 + offset, 1 + min(known.items, offset + limit))
    return await _read_items(room, tenant, session_id, wanted)


async def item(room: Room, tenant: str, session_id: str, item_id: int) -> Item:
    """See `SessionStore.item`."""
    found = await _read_items(room, tenant, session_id, range(item_id, item_id + 1))
    if not found:
        raise _no_item(session_id, item_id)
    return found[0]


async def _read_items(room: Room, tenant: str, session_id: str, wanted: range) -> tuple[Item, ...]:
    if not wanted:
        return ()
    keys = room.keys.session(tenant, session_id)
    states, payloads = await room.connection.read_batch(
        [("HMGET", keys.items, *wanted), ("HMGET", keys.payloads, *wanted)], atomic=True
    )
    found = zip(wanted, states, payloads, strict=True)
    return tuple(codec.item(n, state, payload) for n, state, payload in found if state is not None)


def not_taught(session_id: str) -> SessionImported:
    """Make the error for feedback to a session whose version in force is an import."""
    return SessionImported(
        f"the adapter of session {session_id!r} was imported, so it is served as it is and cannot "
        "be taught: teach another session, or reset this one and begin untaught"
    )


def exists(session_id: str) -> SessionExists:
    """Make the error for a session that is there, where a new one was asked for."""
    return SessionExists(f"there is a session {session_id!r} already: use it, or take another id")


def csv(ids: Sequence[int]) -> str:
    """Join ids the way scripts read them."""
    return ",".join(str(int(n)) for n in ids)


def _earlier(record: Mapping[str, Any], incarnation: bytes) -> AppendResult:
    ids = _range(record["first"], record["last"])
    return AppendResult(ids, incarnation.decode(), repeated=True, answer=codec.answer(record))


def _another_request() -> IdempotencyConflict:
    return IdempotencyConflict(  # our key is a hash of the caller's, which it knows
        "this idempotency key was used for another request: "
        "repeat that request unchanged, or take a new key"
    )


def _range(first: int, last: int) -> tuple[int, ...]:
    return tuple(range(first, last + 1))


def _no_item(session_id: str, item_id: int) -> ItemNotFound:
    return ItemNotFound(f"{called(session_id)} has no feedback item {item_id}")
