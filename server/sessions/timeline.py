"""Sessions in the order of time, from indexes, so that a page reads the pointers on it only.

A time in an index is written before the session is (see `room`), so it is about right: a moment
early, or, for a request that changed nothing or a writer that died, late. What a page shows is read
from the sessions. Where the index says something else, or the session is gone, and no write can be
under way any more, the index is corrected; sessions of before there were these indexes are placed
by whoever reads first.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Literal

from server.sessions import index_scripts
from server.sessions.codec import META_FIELDS, pointer
from server.sessions.errors import StoreCorrupt, StoreUnavailable
from server.sessions.keys import INDEX_GRACE_S, PLACED_S, quoted, unquoted
from server.sessions.link import Command
from server.sessions.room import Room, milliseconds
from server.sessions.types import HOUSE, Pointer, SessionPage

CHUNK = 200  # sessions or tenants asked for in one go
SCANNED = 1000  # names of sessions

Reference = tuple[str, str]  # tenant, session id
Entry = tuple[int, str, bytes]  # time in ms, tenant, quoted session id
TimeSort = Literal["updated_at", "created_at"]


async def page(
    room: Room,
    tenants: Sequence[str],
    *,
    offset: int,
    limit: int,
    contains: str,
    sort: TimeSort,
    descending: bool,
) -> SessionPage:
    """Read a page of these tenants' sessions; `place` them before.

    Raises StoreUnavailable, StoreCorrupt.
    """
    named: list[Entry] = []
    if contains:
        named = await _entries(room, tenants, sort, 0, None, descending)
        named = [entry for entry in named if contains in unquoted(entry[2].decode())]
        total = len(named)
    else:
        total = sum([listed for _, listed, _ in await _counts(room, tenants)])
    found: list[Pointer] = []
    shown: dict[Reference, Entry] = {}
    start, wanted = offset, limit
    while wanted > 0:
        if contains:
            entries = named[start : start + wanted]
        else:
            entries = await _entries(room, tenants, sort, start, wanted, descending)
        if not entries:
            break
        names = [(tenant, unquoted(member.decode())) for _, tenant, member in entries]
        shown |= dict(zip(names, entries, strict=True))
        found += await pointers(room, names)
        start += wanted
        wanted = limit - len(found)
    found.sort(key=lambda p: (p.tenant, p.session_id))
    found.sort(key=lambda p: _time(p, sort), reverse=descending)
    total -= len(shown) - len(found)
    with suppress(StoreUnavailable):  # a page of a Redis that takes no writes is a page
        await _mend(room, sort, shown, found)
    return SessionPage(total, tuple(found))


async def unused(room: Room, tenants: Sequence[str], before_s: float) -> list[Reference]:
    """Name the sessions that may not have changed since a time; `place` them before.

    Raises StoreUnavailable, StoreCorrupt.
    """
    found: dict[Reference, None] = {}
    for tenant in tenants:
        key = room.keys.updated(tenant)
        future_ms = int((await room.connection.now(key) + INDEX_GRACE_S) * 1000)
        # What is named in the future was named before the clock of Redis was set back.
        spans: list[tuple[str | int, str | int]] = [
            ("-inf", int(before_s * 1000)),
            (future_ms, "+inf"),
        ]
        for span in spans:
            start, more = 0, True
            while more:
                members = await room.connection.read(
                    "ZRANGEBYSCORE", key, *span, "LIMIT", start, SCANNED
                )
                found |= dict.fromkeys((tenant, unquoted(m.decode())) for m in members)
                start, more = start + SCANNED, len(members) == SCANNED
    return list(found)


async def place(room: Room, tenants: Sequence[str]) -> bool:
    """See to it that every session named has its place in time; False where Redis takes no writes.

    What an older server named is found here, by the lengths of the indexes or once in PLACED_S.
    Raises StoreUnavailable, StoreCorrupt.
    """
    counts = await _counts(room, tenants)
    now_s = await room.connection.now(room.keys.placed)
    for start in range(0, len(tenants), CHUNK):
        some = tenants[start : start + CHUNK]
        members = map(quoted, some)
        times = await room.connection.read("ZMSCORE", room.keys.placed, *members)
        for tenant, at, (named, *listed) in zip(some, times, counts[start:], strict=False):
            if at is not None and abs(now_s - float(at) / 1000) < PLACED_S and {named} == {*listed}:
                continue
            if named == 0 and not any(listed):
                continue
            try:
                await _place(room, tenant, milliseconds(now_s))
            except StoreUnavailable:
                return False
    return True


async def pointers(room: Room, names: Sequence[Reference]) -> list[Pointer]:
    """Read the pointers of those sessions that exist. Raises StoreUnavailable, StoreCorrupt."""
    found = []
    for start in range(0, len(names), CHUNK):
        chunk = names[start : start + CHUNK]
        commands = [("HMGET", room.keys.session(*name).meta, *META_FIELDS) for name in chunk]
        replies = await room.connection.read_batch(commands, scattered=True)
        found += [pointer(*name, fields) for name, fields in zip(chunk, replies, strict=True)]
    return [one for one in found if one.exists]


async def _counts(room: Room, tenants: Sequence[str]) -> list[list[int]]:
    found: list[list[int]] = []
    for start in range(0, len(tenants), CHUNK):
        commands: list[Command] = [
            ("EVAL", index_scripts.COUNTS, 3, *room.keys.indexes(tenant), quoted(HOUSE))
            for tenant in tenants[start : start + CHUNK]
        ]
        found += await room.connection.read_batch(commands, scattered=True)
    return found


async def _entries(
    room: Room,
    tenants: Sequence[str],
    sort: TimeSort,
    start: int,
    count: int | None,
    descending: bool,
) -> list[Entry]:
    """Read the entries from a place on, of all tenants together."""
    # Only one tenant's own order says what comes before.
    first = start if len(tenants) == 1 else 0
    end = None if count is None else start + count
    found: list[Entry] = []
    for tenant in tenants:
        key = _index(room, tenant, sort)
        at, more = first, end is None or first < end
        while more:
            stop = at + SCANNED if end is None else min(at + SCANNED, end)
            order = ("REV",) if descending else ()
            flat = await room.connection.read("ZRANGE", key, at, stop - 1, *order, "WITHSCORES")
            found += [(int(float(flat[n + 1])), tenant, flat[n]) for n in range(0, len(flat), 2)]
            more = len(flat) == 2 * (stop - at) and (end is None or stop < end)
            at = stop
    found.sort(reverse=descending)
    return found[start - first : None if end is None else end - first]


async def _mend(
    room: Room, sort: TimeSort, shown: Mapping[Reference, Entry], found: Sequence[Pointer]
) -> None:
    """Correct the index where it said something else, long enough ago."""
    known = {(p.tenant, p.session_id): p for p in found}
    wrong: dict[str, list[str | int | bytes]] = {}
    gone = []
    for name, (at_ms, tenant, member) in shown.items():
        if name not in known:
            gone.append((name, at_ms))
        elif at_ms != (right_ms := milliseconds(_time(known[name], sort))):
            wrong.setdefault(tenant, []).extend((member, at_ms, right_ms))
    if not gone and not wrong:
        return
    now_ms = milliseconds(await room.connection.now(room.keys.placed))
    for name, at_ms in gone:
        if _settled(at_ms, now_ms):
            await room.unindex(*name)
    for tenant, words in wrong.items():
        triples = [words[n : n + 3] for n in range(0, len(words), 3)]
        args = [word for triple in triples if _settled(int(triple[1]), now_ms) for word in triple]
        if args:
            key = _index(room, tenant, sort)
            await room.connection.run(index_scripts.CORRECT, [key], args, confirmed=False)


def _settled(at_ms: int, now_ms: int) -> bool:
    """Whether no write that named a session then can be under way; nor if the clock was ahead."""
    return abs(now_ms - at_ms) > INDEX_GRACE_S * 1000


async def _place(room: Room, tenant: str, now_ms: int) -> None:
    """Compare a tenant's indexes, member by member."""
    names, *times = room.keys.indexes(tenant)
    async for unlisted in _missing(room, "SSCAN", names, times):
        some = [member for member in unlisted if member != quoted(HOUSE).encode()]
        for start in range(0, len(some), CHUNK):
            await _place_some(room, tenant, some[start : start + CHUNK], now_ms)
    for key in times:  # what an older server deleted
        async for unnamed in _missing(room, "ZSCAN", key, [names]):
            for member in unnamed:
                await room.unindex(tenant, unquoted(member.decode()))
    await room.connection.read("ZADD", room.keys.placed, now_ms, quoted(tenant))


async def _missing(
    room: Room, scan: str, key: str, others: Sequence[str]
) -> AsyncIterator[list[bytes]]:
    """Look through an index, in parts, for what others do not have."""
    cursor, more, count = b"0", True, 1 + len(others)
    while more:
        cursor, *missing = await room.connection.read(
            "EVAL", index_scripts.MISSING, count, key, *others, scan, cursor, SCANNED
        )
        more = cursor != b"0"
        yield missing


async def _place_some(room: Room, tenant: str, members: Sequence[bytes], now_ms: int) -> None:
    ids = [unquoted(member.decode()) for member in members]
    commands = [("HMGET", room.keys.session(tenant, one).meta, *META_FIELDS) for one in ids]
    args: list[str | int | bytes] = []
    try:
        replies = await room.connection.read_batch(commands, scattered=True)
        read = [_times(tenant, one, fields) for one, fields in zip(ids, replies, strict=True)]
    except StoreCorrupt:  # one that holds no hash fails them all
        read = [await _times_of(room, tenant, one) for one in ids]
    for member, times in zip(members, read, strict=True):
        args += [member, *(times or (now_ms, now_ms))]  # a name whose session may be under way
    await room.connection.run(index_scripts.PLACE, room.keys.indexes(tenant), args, confirmed=False)


async def _times_of(room: Room, tenant: str, session_id: str) -> tuple[int, int] | None:
    try:
        key = room.keys.session(tenant, session_id).meta
        fields = await room.connection.read("HMGET", key, *META_FIELDS)
    except StoreCorrupt:
        return 0, 0
    return _times(tenant, session_id, fields)


def _times(tenant: str, session_id: str, fields: Sequence[bytes | None]) -> tuple[int, int] | None:
    try:
        read = pointer(tenant, session_id, fields)
    except StoreCorrupt:  # it has to be somewhere, to be seen and deleted
        return 0, 0
    times = (milliseconds(read.updated_at), milliseconds(read.created_at))
    return times if read.exists else None


def _index(room: Room, tenant: str, sort: TimeSort) -> str:
    return room.keys.updated(tenant) if sort == "updated_at" else room.keys.created(tenant)


def _time(read: Pointer, sort: TimeSort) -> float:
    return read.updated_at if sort == "updated_at" else read.created_at
