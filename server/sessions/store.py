"""The session store: one object through which everybody else reaches sessions.

It says what each call promises and leaves the doing to `feedback`, `versions` and `directory`.
Reading calls change nothing. Writing calls happen wholly or not at all; when one raises
StoreUnavailable it is unknown which, and asking again is safe for all but `append` without an
idempotency key. Every call raises StoreUnavailable when Redis is away, StoreCorrupt when a key
holds what this room never writes, and InvalidName for an empty name.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from server.sessions import directory, feedback, houses, versions
from server.sessions.access import Access
from server.sessions.connection import Connection
from server.sessions.database import check_database
from server.sessions.keys import (
    COMPLETION_LIFETIME_S,
    DEFAULT_NAMESPACE,
    HISTORY_SNAPSHOTS,
    HISTORY_VERSIONS,
    Keys,
)
from server.sessions.replicas import Fit, Replica
from server.sessions.room import Room
from server.sessions.types import (
    AppendResult,
    Completion,
    Derivation,
    Event,
    ForgetResult,
    Item,
    NewItem,
    Pointer,
    SessionPage,
    SessionSort,
    Version,
    VersionRecord,
)


class SessionStore:
    """Sessions in one Redis, for use in one event loop: `async with await SessionStore.open(url)`.

    `deployment` names the database; it changes when the database was emptied. `access` has keys,
    tokens, rates and the audit log.
    """

    def __init__(
        self, room: Room, deployment: str, *, history_versions: int, history_snapshots: int
    ) -> None:
        self._room = room
        self._history_versions = history_versions
        self._history_snapshots = history_snapshots
        self.deployment = deployment
        self.access = Access(room)

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        history_versions: int = HISTORY_VERSIONS,
        history_snapshots: int = HISTORY_SNAPSHOTS,
        timeout_s: float = 5.0,
        replicas: int = 0,
        fsync: bool = False,
        shared: bool = True,
    ) -> Self:
        """Connect to the Redis at a URL (see `addresses`) and check that the database is ours.

        `namespace` begins every key; `history_versions` are kept of each session, the newest
        `history_snapshots` of them with their bytes; `timeout_s` bounds each command; what is
        written to a session counts when that many `replicas` of Redis have it and, with `fsync`,
        the append-only file on the primary's disk. Raises
        StoreRefused for another schema, an evicting Redis, one that cannot tell when its file is
        synced where that is asked for, a URL that is none or, unless the
        database may be `shared`, one that holds nothing but other programs' keys; InvalidName for
        a namespace that cannot be part of a key.
        """
        if min(history_versions, history_snapshots) < 1:
            raise ValueError(
                f"history_versions is {history_versions} and history_snapshots "
                f"{history_snapshots}, both must be at least 1"
            )
        keys = Keys(namespace)
        connection = Connection(url, timeout_s=timeout_s, replicas=replicas, fsync=fsync)
        try:
            deployment = await check_database(connection, keys, shared=shared)
        except BaseException:
            await connection.aclose()
            raise
        return cls(
            Room(connection, keys),
            deployment,
            history_versions=history_versions,
            history_snapshots=history_snapshots,
        )

    async def aclose(self) -> None:
        """Close all connections to Redis."""
        await self._room.connection.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def ping(self) -> None:
        """Return when Redis answers."""
        await self._room.connection.ping()

    def replica(self, fit: Fit, settings: Mapping[str, Any]) -> Replica:
        """Make this server's place among those on the same database; it has to join."""
        return Replica(self._room, fit, settings)

    # Reading a session

    async def pointer(self, tenant: str, session_id: str) -> Pointer:
        """Read where a session stands. One that is not there is untaught, with exists=False."""
        return await self._room.pointer(tenant, session_id)

    async def standing(self, tenant: str, session_id: str) -> tuple[Pointer, Pointer]:
        """Read where a session stands, and its tenant's house, whose session id is HOUSE."""
        return await houses.standing(self._room, tenant, session_id)

    async def derivation(self, tenant: str, session_id: str) -> Derivation:
        """Read, in one piece, the pointer and the items that an adapter is derived from."""
        return await feedback.derivation(self._room, tenant, session_id)

    async def derivable(self, tenant: str, session_id: str) -> tuple[Item, ...]:
        """Read the applied and pending items in the order of their ids."""
        return (await self.derivation(tenant, session_id)).items

    async def repeated(
        self, tenant: str, session_id: str, idempotency_key: str | None, request_hash: str
    ) -> AppendResult | None:
        """Read what `append` would return of an earlier request with the same key; None where there
        was none, or is no key. Raises IdempotencyConflict for the same key with another hash."""
        return await feedback.repeated(
            self._room, tenant, session_id, idempotency_key, request_hash
        )

    async def items(
        self, tenant: str, session_id: str, *, offset: int = 0, limit: int = 100
    ) -> tuple[Item, ...]:
        """Read items of any status by id; `Pointer.items` counts them. Raises SessionNotFound."""
        return await feedback.items(self._room, tenant, session_id, offset, limit)

    async def item(self, tenant: str, session_id: str, item_id: int) -> Item:
        """Read one item. Raises ItemNotFound."""
        return await feedback.item(self._room, tenant, session_id, item_id)

    async def version_record(self, tenant: str, session_id: str, number: int) -> Version:
        """Read what a version came from. Raises VersionNotFound, also for 0, which has none."""
        return await versions.version(self._room, tenant, session_id, number)

    async def versions(self, tenant: str, session_id: str) -> tuple[Version, ...]:
        """Read the versions that are still kept, oldest first."""
        return await versions.versions(self._room, tenant, session_id)

    async def snapshot(self, tenant: str, session_id: str, number: int) -> bytes:
        """Read a version's bytes. Raises VersionNotFound, or SnapshotLost: derive it again.

        They are lost where a newer version let go of them, or Redis did.
        """
        return await versions.snapshot(self._room, tenant, session_id, number)

    async def events(self, tenant: str, session_id: str, *, limit: int = 100) -> tuple[Event, ...]:
        """The log, newest first: create, import, feedback, promote, refuse, forget, rollback,
        reset, pin, unpin."""
        return await directory.events(self._room, tenant, session_id, limit)

    async def events_after(
        self, tenant: str, session_id: str, after: str, *, limit: int = 100
    ) -> tuple[str, tuple[Event, ...]]:
        """The session's incarnation, empty where it is not there, and what its log says after an
        event's id, oldest first."""
        return await directory.events_after(self._room, tenant, session_id, after, limit)

    # Writing a session

    async def create(
        self, tenant: str, session_id: str, *, only_new: bool = False, alone: bool = False
    ) -> Pointer:
        """Make a session without feedback; one that is there already stays as it is.

        Raises SessionExists where it is there and ``only_new`` one will do, or one that is to stay
        ``alone``, without the house.
        """
        return await feedback.create(self._room, tenant, session_id, only_new, alone)

    async def append(
        self,
        tenant: str,
        session_id: str,
        items: Sequence[NewItem],
        idempotency_key: str | None = None,
        request_hash: str = "",
        *,
        origin: str = "",
        only_new: bool = False,
        alone: bool = False,
    ) -> AppendResult:
        """Put feedback into the log as pending, durably, and remember the request's key.

        Makes the session on first use. An item supersedes earlier ones of equal or lesser strength
        about the same prompt, within one call too. The same key with the same hash changes nothing
        and returns the earlier items and answer; keys belong to one session and last a day.
        With ``only_new`` the session must not be there yet, nor with ``alone``, which has it build
        upon no house; ``origin`` says in its log where it
        comes from. Raises IdempotencyConflict for the same key with another hash, SessionExists,
        SessionImported, NotStorable.
        """
        return await feedback.append(
            self._room,
            tenant,
            session_id,
            items,
            idempotency_key,
            request_hash,
            origin=origin,
            only_new=only_new,
            alone=alone,
        )

    async def promote(
        self,
        expected: Pointer,
        snapshot: bytes,
        record: VersionRecord,
        *,
        refused_ids: Sequence[int] = (),
        refused_reason: str = "refused",
        idempotency_key: str | None = None,
        answer: Mapping[str, Any] | None = None,
        unless_pinned: bool = False,
        in_force: bool = False,
    ) -> int:
        """Make a candidate the session's next version and return its number, never used before.

        `expected` is the pointer that the candidate was derived under. The record's items become
        applied, `refused_ids` refused, and the idempotency record is settled with `answer`.
        Versions that contain forgotten items are deleted, and the oldest beyond the history; of
        all but the newest the bytes go.
        Raises VersionConflict, nothing changed and the candidate gone, when the pointer moved or
        an item of the record does not derive any more; SessionPinned where it is and
        ``unless_pinned``; SessionNotFound when the session was deleted meanwhile; NotStorable. With
        ``in_force`` the record's items may be superseded and stay so: a pinned session's are what
        they are, whatever waits behind them.
        """
        return await versions.promote(
            self._room,
            expected,
            snapshot,
            record,
            refused_ids=refused_ids,
            refused_reason=refused_reason,
            idempotency_key=idempotency_key,
            answer=answer,
            history=self._history_versions,
            snapshots=self._history_snapshots,
            unless_pinned=unless_pinned,
            in_force=in_force,
        )

    async def adopt(
        self,
        tenant: str,
        session_id: str,
        snapshot: bytes,
        record: VersionRecord,
        *,
        origin: str,
        alone: bool = False,
    ) -> None:
        """Make a session whose first version, in force, is an adapter that was not derived here.

        The record's start is IMPORTED. The version is kept with its bytes as long as the session
        is, beside the history; while it is in force, `append` raises SessionImported. `origin` is
        for the log; `alone` as of `append`. Raises SessionExists, NotStorable.
        """
        await versions.adopt(self._room, tenant, session_id, snapshot, record, origin, alone)

    async def restore(self, pointer: Pointer, number: int, snapshot: bytes) -> None:
        """Store a version's bytes again that were let go of or lost.

        Raises VersionNotFound, and SessionNotFound when the session was deleted meanwhile.
        """
        await versions.restore(self._room, pointer, number, snapshot)

    async def promote_untaught(
        self,
        expected: Pointer,
        *,
        refused_ids: Sequence[int] = (),
        refused_reason: str = "refused",
    ) -> None:
        """Go to version 0, for a session of which nothing is left to derive from.

        `refused_ids` are what was left, and derived over in vain: they are refused, as by `reset`.
        What is pending and none of them stays so.
        Raises VersionConflict when the pointer moved or other items are applied, SessionNotFound.
        """
        await versions.promote_untaught(self._room, expected, refused_ids, refused_reason)

    async def refuse(
        self,
        tenant: str,
        session_id: str,
        item_ids: Sequence[int],
        reason: str,
        idempotency_key: str | None = None,
        answer: Mapping[str, Any] | None = None,
        *,
        incarnation: str = "",
    ) -> tuple[int, ...]:
        """Refuse pending items, settle the record, and leave the version alone.

        What they had superseded comes back. Returns the ids that were still pending. With
        `incarnation`, from the pointer that was read, a session made anew is left alone.
        Raises SessionNotFound, NotStorable.
        """
        return await feedback.refuse(
            self._room,
            tenant,
            session_id,
            item_ids,
            reason,
            idempotency_key,
            answer,
            incarnation,
        )

    async def settle(
        self,
        tenant: str,
        session_id: str,
        idempotency_key: str,
        version: int,
        answer: Mapping[str, Any],
        *,
        incarnation: str = "",
    ) -> Mapping[str, Any] | None:
        """Answer a request whose items another request's version applied already.

        The first answer stays, and is given back, with `adapter_version` as in an `AppendResult`;
        None where the key is not known. Raises SessionNotFound, NotStorable.
        """
        return await feedback.settle(
            self._room, tenant, session_id, idempotency_key, version, answer, incarnation
        )

    async def forget(self, tenant: str, session_id: str, item_id: int) -> ForgetResult:
        """Erase an item, restore what it superseded, delete versions that contain it.

        The active version stays until its successor is promoted (or `promote_untaught`): where
        the result says so, derive again. Redis' append-only file holds the text until it is next
        rewritten. Raises SessionNotFound, ItemNotFound.
        """
        return await feedback.forget(self._room, tenant, session_id, item_id)

    async def rollback(self, tenant: str, session_id: str, to_version: int) -> Pointer:
        """Make a kept version, or 0, the active one again; its items and no others are applied.

        Raises SessionNotFound, VersionNotFound.
        """
        return await versions.rollback(
            self._room, tenant, session_id, to_version, "rolled back", "rollback"
        )

    async def reset(self, tenant: str, session_id: str) -> Pointer:
        """Go to version 0 and refuse all items; kept versions can be rolled forward to.

        Raises SessionNotFound.
        """
        return await versions.rollback(self._room, tenant, session_id, 0, "reset", "reset")

    # What a house forgets

    async def expect_sweep(self, tenant: str) -> None:
        """Name a tenant whose house is about to forget something, until `sweep` is done."""
        await houses.expect_sweep(self._room, tenant)

    async def unswept(self, *, idle_s: float = 0.0) -> tuple[str, ...]:
        """Find the tenants that were named so long ago and are named still."""
        return await houses.unswept(self._room, idle_s)

    async def sweep(self, tenant: str) -> int:
        """Delete all versions of sessions that contain what their house has forgotten; those in
        force become ``unpurged``, to be derived again. Says how many sessions had any."""
        return await houses.sweep(self._room, tenant)

    async def taint_since(self, tenant: str, session_id: str, house: Pointer) -> None:
        """The same for one session, if the house has forgotten anything since ``house`` was read.

        For whoever promotes what was derived from it: a sweep may have come by before.
        """
        await houses.taint_since(self._room, tenant, session_id, house)

    async def pin(self, tenant: str, session_id: str, pinned: bool, *, house: str = "") -> Pointer:
        """Have a session keep its version, and that of its house which is named, or go on.

        Raises SessionNotFound.
        """
        return await versions.pin(self._room, tenant, session_id, pinned, house)

    async def delete(self, tenant: str, session_id: str) -> bool:
        """Delete a session with all that belongs to it, completions included; say if it was there.

        A corrupt session can be deleted too.
        """
        return await directory.delete(self._room, tenant, session_id)

    # All sessions

    async def sessions(
        self,
        tenant: str | None = None,
        *,
        offset: int = 0,
        limit: int = 50,
        contains: str = "",
        taught: bool | None = None,
        sort: SessionSort = "updated_at",
        descending: bool = True,
    ) -> SessionPage:
        """Read a page of a tenant's sessions, or of all tenants' with None.

        `contains` is a part of the session id; `taught` asks for a version above 0, or for 0.
        """
        return await directory.sessions(
            self._room,
            tenant,
            offset=offset,
            limit=limit,
            contains=contains,
            taught=taught,
            sort=sort,
            descending=descending,
        )

    async def tenants_of(self, session_id: str) -> tuple[str, ...]:
        """Find the tenants that have a session of that name."""
        return await directory.tenants_of(self._room, session_id)

    async def pending_sessions(self, *, idle_s: float = 0.0) -> tuple[Pointer, ...]:
        """Find sessions with work that a crash left half done: pending items, or a forgotten item
        in the active version. With `idle_s`, only those that nothing was appended to for so long.
        """
        return await directory.pending_sessions(self._room, idle_s)

    async def expire(self, lifetime_s: float) -> int:
        """Delete the sessions, of all tenants, that were not used for so long; says how many."""
        return await directory.expire(self._room, lifetime_s)

    # Completions

    async def save_completion(
        self,
        tenant: str,
        session_id: str,
        completion_id: str,
        payload: Mapping[str, Any],
        lifetime_s: int = COMPLETION_LIFETIME_S,
        *,
        incarnation: str = "",
    ) -> bool:
        """Keep a completion for later feedback. With `incarnation`, from the pointer that was read,
        only while the session is there still; says whether it was kept. Raises NotStorable."""
        return await directory.save_completion(
            self._room, tenant, session_id, completion_id, payload, lifetime_s, incarnation
        )

    async def completion(self, tenant: str, completion_id: str) -> Completion:
        """Read a completion. Raises CompletionNotFound."""
        return await directory.completion(self._room, tenant, completion_id)
