"""Feedback from the log to a promoted version: append, derive, guard, promote.

It knows the store and how to derive, no HTTP. The log is the truth: what was appended is finished
later if this process dies in between. A refused or failed derivation changes no version.
"""

import logging
from collections.abc import Callable, Sequence

from server import logs
from server.flows.deriving import UNTEACHABLE, Derived, Deriver
from server.flows.fullness import check_room, left_by
from server.flows.housing import Houses
from server.flows.locks import SessionLocks
from server.flows.outcome import (
    Appended,
    Lesson,
    Outcome,
    SessionFull,
    of_candidate,
    of_items,
    of_refusal,
    waits,
)
from server.flows.promoting import MAX_RACES, kept_version, promote
from server.sessions import (
    LIVE,
    Derivation,
    Item,
    ItemNotFound,
    Pointer,
    SessionPinned,
    SessionStore,
    VersionConflict,
    gone,
    not_taught,
)

logger = logging.getLogger(__name__)

WOULD_WAIT = "the session is pinned at its version: nothing is learned before it is unpinned"
PINNED = (
    "the session is pinned at its version: the feedback is in its log, and is learned when it is "
    "unpinned"
)


class Teacher:
    """Teaches sessions. One per process; several processes may teach the same session."""

    def __init__(
        self,
        deriver: Deriver,
        store: SessionStore,
        locks: SessionLocks,
        houses: Houses,
        learned: Callable[[bool, int, float | None], None] = lambda *_: None,
    ) -> None:
        """``learned`` is told whether feedback was accepted, its items and the lesson's ms."""
        self._learned = learned
        self._deriver = deriver
        self._store = store
        self._locks = locks
        self._houses = houses

    async def append(
        self,
        tenant: str,
        session_id: str,
        lessons: Sequence[Lesson],
        key: str | None,
        request_hash: str,
    ) -> Appended:
        """Check lessons and put them into the log, durably; a repeated ``key`` changes nothing.

        Raises:
            LessonError, SessionFull, IdempotencyConflict, SessionImported, SessionStoreError:
                nothing was kept.
        """
        logs.note(session_id=session_id)
        examples = await self._deriver.examples(lessons)
        items = [
            lesson.item(len(example.prompt))
            for lesson, example in zip(lessons, examples, strict=True)
        ]
        try:
            await check_room(self._store, tenant, session_id, items)
        except SessionFull:  # what was taken before needs no room
            earlier = await self._store.repeated(tenant, session_id, key, request_hash)
            if earlier is None:
                raise
            result = earlier
        else:
            result = await self._store.append(tenant, session_id, items, key, request_hash)
        outcome = None if result.answer is None else Outcome.restored(result.answer)
        return Appended(result.item_ids, result.incarnation, key, result.repeated, outcome)

    async def append_once(
        self, tenant: str, session_id: str, lesson: Lesson, digest: str
    ) -> Appended:
        """Put a lesson into the log unless it is there and still counts.

        ``digest`` names its content. Told again after it was superseded, forgotten or refused, by
        the guard or by going back to an older version, it is new.

        Raises:
            As `append`.
        """
        key = f"once-{digest}"
        while True:
            appended = await self.append(tenant, session_id, [lesson], key, digest)
            if not appended.repeated:
                return appended
            item = await self._store.item(tenant, session_id, appended.items[0])
            if item.status in LIVE:
                return appended
            key = f"once-{digest}-{item.id}"

    async def teach(
        self,
        tenant: str,
        session_id: str,
        own: Sequence[int],
        steps: int | None = None,
        key: str | None = None,
        incarnation: str = "",
    ) -> Outcome:
        """Bring appended items into a version, or refuse them, and settle ``key`` with the outcome.

        Pending items of other requests are derived over as well, so that whoever comes second finds
        the work done; where the guard refuses them all together, ours are judged without them.
        ``incarnation`` is that of the session that they were appended to, '' whichever is there.

        Raises:
            EngineError: EngineFailed refused the items; after any other they stay pending and are
                finished later.
            SessionStoreError: SessionNotFound when it was deleted meanwhile, made again or not.
        """
        async with self._locks.hold(tenant, session_id):
            for _ in range(MAX_RACES):
                derivation = await self._derivation(tenant, session_id, incarnation)
                ours = {i.id for i in derivation.items if i.status == "pending"} & set(own)
                pointer = derivation.pointer
                if not ours:
                    return await self._already_done(pointer, own, key)
                if pointer.pinned:
                    return of_refusal(session_id, own, pointer.version, PINNED)
                try:
                    return await self._settle(derivation, own, ours, steps, key)
                except VersionConflict as conflict:
                    logger.info("derive again: %s", conflict)
                except SessionPinned:  # since the derivation was read
                    return of_refusal(session_id, own, pointer.version, PINNED)
        raise VersionConflict(
            f"session {session_id!r} changes faster than it can be taught; the feedback is in its "
            "log and will be applied"
        )

    async def outcome(
        self, tenant: str, session_id: str, own: Sequence[int], incarnation: str = ""
    ) -> Outcome | None:
        """What became of appended items; None while one of them is pending.

        Raises:
            ItemNotFound, SessionStoreError; with an ``incarnation`` SessionNotFound where the
                session is another one.
        """
        items = [await self._store.item(tenant, session_id, number) for number in own]
        pointer = await self._store.pointer(tenant, session_id)  # after them: they are of it
        if incarnation not in ("", pointer.incarnation):
            raise gone(session_id)
        if any(item.status == "pending" for item in items):
            return None
        numbers = [item.version for item in items if item.version is not None]
        version = await kept_version(self._store, pointer, max(numbers)) if numbers else None
        return of_items(session_id, pointer.version, items, version)

    async def dry_run(
        self, tenant: str, session_id: str, lessons: Sequence[Lesson], steps: int | None
    ) -> Outcome:
        """What teaching ``lessons`` would do, keeping nothing.

        Raises:
            LessonError, SessionFull, EngineError, SessionStoreError.
        """
        logs.note(session_id=session_id)
        derivation = await self._store.derivation(tenant, session_id)
        if derivation.pointer.imported:
            raise not_taught(session_id)
        new = [lesson.item(0) for lesson in lessons]
        await check_room(self._store, tenant, session_id, new)
        if derivation.pointer.pinned:
            return of_refusal(session_id, (), derivation.pointer.version, WOULD_WAIT)
        left = left_by(derivation.items, new)
        items = [item for item in left if isinstance(item, Item)]
        ids = set(map(id, left))
        kept = [lesson for lesson, item in zip(lessons, new, strict=True) if id(item) in ids]
        house = await self._houses.start(tenant, session_id)
        derived = await self._deriver.try_out(tenant, session_id, items, kept, steps, house)
        if derived.failure is not None:
            raise derived.failure
        version = derivation.pointer.version
        if derived.candidate is None:
            return of_refusal(session_id, (), version, derived.reason or "refused")
        return of_candidate(session_id, (), version, len(left), derived.candidate)

    async def finish(self, pointer: Pointer) -> bool:
        """Bring in what a crash left pending in a session, request by request.

        What is meant to wait for the session's next feedback goes on waiting for it; says whether
        there was anything else.

        Raises:
            EngineError, SessionStoreError.
        """
        tenant, session_id = pointer.tenant, pointer.session_id
        if pointer.pinned:
            return False
        derivation = await self._store.derivation(tenant, session_id)
        requests: dict[tuple[str | None, float], list[Item]] = {}
        for item in derivation.items:
            if item.status == "pending" and not waits(item):
                requests.setdefault((item.idempotency_key, item.created_at), []).append(item)
        for (key, _), group in requests.items():
            own, steps = [item.id for item in group], group[0].payload.get("steps")
            logger.info("finishing feedback of session %s: items %s", session_id, own)
            incarnation = derivation.pointer.incarnation
            await self.teach(tenant, session_id, own, steps, key, incarnation)
        return bool(requests)

    async def _derivation(self, tenant: str, session_id: str, incarnation: str) -> Derivation:
        derivation = await self._store.derivation(tenant, session_id)
        pointer = derivation.pointer
        if not pointer.exists or incarnation not in ("", pointer.incarnation):
            raise gone(session_id)
        return derivation

    async def _settle(
        self,
        derivation: Derivation,
        own: Sequence[int],
        ours: set[int],
        steps: int | None,
        key: str | None,
    ) -> Outcome:
        """Derive over everything, or where that is refused over applied items and ours."""
        whose = derivation.pointer.tenant, derivation.pointer.session_id
        house = await self._houses.start(*whose)
        derived = await self._deriver.derive(*whose, derivation.items, steps, house=house)
        kept = [i for i in derivation.items if i.status == "applied" or i.id in ours]
        if derived.reason is not None and len(kept) < len(derivation.items):
            derived = await self._deriver.derive(*whose, kept, steps, house=house)
        if derived.reason is not None or not ours & set(derived.item_ids):
            return await self._refuse(derivation.pointer, own, derived, key)
        left_out = sorted(ours - set(derived.item_ids))
        return await self._promote(derivation.pointer, own, derived, key, left_out)

    async def _promote(
        self,
        pointer: Pointer,
        own: Sequence[int],
        derived: Derived,
        key: str | None,
        left_out: Sequence[int] = (),
    ) -> Outcome:
        candidate = derived.candidate
        assert candidate is not None
        outcome = of_candidate(
            pointer.session_id, own, pointer.version, len(derived.item_ids), candidate
        )
        version = await promote(
            self._store,
            self._deriver,
            pointer,
            derived,
            left_out,
            key,
            outcome.stored(),
            unless_pinned=True,
        )
        self._learned(True, len(own) - len(left_out), outcome.duration_ms)
        if left_out:
            self._learned(False, len(left_out), None)
        return Outcome.restored(outcome.stored() | {"adapter_version": version})

    async def _refuse(
        self, pointer: Pointer, own: Sequence[int], derived: Derived, key: str | None
    ) -> Outcome:
        reason = derived.reason or UNTEACHABLE
        if derived.candidate is None:
            outcome = of_refusal(pointer.session_id, own, pointer.version, reason)
        else:
            outcome = of_candidate(
                pointer.session_id, own, pointer.version, len(derived.item_ids), derived.candidate
            )
        await self._store.refuse(
            pointer.tenant,
            pointer.session_id,
            own,
            reason,
            key,
            outcome.stored(),
            incarnation=pointer.incarnation,
        )
        if derived.failure is not None:
            raise derived.failure
        self._learned(False, len(own), outcome.duration_ms)
        return outcome

    async def _already_done(self, pointer: Pointer, own: Sequence[int], key: str | None) -> Outcome:
        """The outcome of items that another request's derivation has brought in."""
        tenant, session_id = pointer.tenant, pointer.session_id
        try:
            outcome = await self.outcome(tenant, session_id, own, pointer.incarnation)
        except ItemNotFound as error:  # no log loses one but with its session
            raise gone(session_id) from error
        if outcome is None:  # appended after the derivation was read: impossible under one lock
            raise VersionConflict(f"items of session {session_id!r} changed; ask again")
        if key is None:
            return outcome
        # Who brought them in may have settled it, and what they came into may be gone since.
        first = await self._store.settle(
            tenant,
            session_id,
            key,
            outcome.adapter_version,
            outcome.stored(),
            incarnation=pointer.incarnation,
        )
        return outcome if first is None else Outcome.restored(first)
