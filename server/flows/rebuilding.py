"""Deriving a session again from its log: to forget, to mend, to go back to an older version.

It knows the store and how to derive, no HTTP.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from server.flows.deriving import Derived, Deriver
from server.flows.locks import SessionLocks
from server.flows.outcome import Forgotten, waits
from server.flows.promoting import MAX_RACES, contained, kept_version, promote
from server.sessions import (
    HOUSE,
    IMPORTED,
    Item,
    Pointer,
    SessionStore,
    Version,
    VersionConflict,
)

if TYPE_CHECKING:
    from server.flows.house import House
    from server.flows.housing import Houses

logger = logging.getLogger(__name__)

REMEMBERED_MAX = 10_000
"""Versions remembered as refused or restored, so that not every request tries them again."""

UNDERIVABLE = "its adapter was imported for another model, or is lost, and cannot be derived"


class Rebuilder:
    """Derives sessions again. Shares its locks with the teacher of this process."""

    def __init__(
        self,
        deriver: Deriver,
        store: SessionStore,
        locks: SessionLocks,
        houses: Houses | None = None,
    ) -> None:
        """Without ``houses`` it is for houses themselves, which are derived from session_init."""
        self._houses = houses
        self._deriver = deriver
        self._store = store
        self._locks = locks
        # incarnation, version, fingerprint, house
        self._unmendable: set[tuple[str, int, str, str]] = set()
        self._restored: dict[tuple[str, int], float] = {}  # incarnation, version: when

    async def forget(self, tenant: str, session_id: str, item_id: int) -> Forgotten:
        """Erase an item and derive without it. Forgetting cannot be refused: where the guard
        refuses what is left, the session is untaught afterwards and ``reason`` says why. Feedback
        that this was not derived over goes on waiting.

        Raises:
            SessionNotFound, ItemNotFound, EngineError, SessionStoreError: after an EngineError the
                item is erased and its versions go as soon as the engine answers.
        """
        async with self._locks.hold(tenant, session_id):
            result = await self._store.forget(tenant, session_id, item_id)
            reason = None
            if result.derive_again:
                reason = await self._rebuild(tenant, session_id, forgetting=True)
            pointer = await self._store.pointer(tenant, session_id)
        return Forgotten(
            session_id, item_id, pointer.version, result.restored, result.versions, reason
        )

    async def restore(self, pointer: Pointer, number: int) -> bool:
        """Derive a version again from the items that it came from, and store its bytes.

        False where the model and the rule are not those that it came from any more, the version of
        the house that it came from is not kept, or the derivation is refused: then nobody can have
        this version again.

        Raises:
            EngineError, SessionStoreError.
        """
        tenant, session_id = pointer.tenant, pointer.session_id
        name, asked_s = (pointer.incarnation, number), time.monotonic()
        known = await kept_version(self._store, pointer, number)
        if known is None or known.record.start == IMPORTED:
            return False
        if not self._deriver.makes(known.record):
            return False
        async with self._locks.hold(tenant, session_id):
            if self._restored.get(name, -math.inf) > asked_s:
                return True  # somebody else was faster
            house = await self._house_of(tenant, known)
            if house is None and known.record.house:
                return False
            items = await contained(self._store, pointer, known)
            derived = await self._deriver.derive(
                tenant, session_id, items, known.record.steps, known.record, house
            )
            if derived.failure is not None:
                raise derived.failure
            if derived.reason is not None or derived.item_ids != known.record.item_ids:
                return False
            await self._store.restore(pointer, number, await self._deriver.snapshot(derived))
            if len(self._restored) >= REMEMBERED_MAX:
                self._restored.clear()
            self._restored[name] = time.monotonic()
            return True

    async def mend(self, pointer: Pointer) -> Pointer:
        """Derive again a version whose bytes are lost, foreign, or of another base or house.

        Where that is refused, the pointer returned is of version 0: the house or the base answers,
        and the stored version stays for the day that what it came from comes back.

        Raises:
            EngineError, SessionStoreError.
        """
        tenant, session_id = pointer.tenant, pointer.session_id
        untaught = Pointer(tenant, session_id, exists=True, incarnation=pointer.incarnation)
        async with self._locks.hold(tenant, session_id):
            now, house = await self._standing(tenant, session_id)
            moved = (now.incarnation, now.version) != (pointer.incarnation, pointer.version)
            if moved and self.stands(now, house):
                return now  # somebody else was faster
            fingerprint = self._deriver.artifact.fingerprint
            broken = (now.incarnation, now.version, fingerprint, self._beneath(house))
            if broken in self._unmendable:
                return untaught
            reason = UNDERIVABLE if now.imported else await self._rebuild(tenant, session_id)
            if reason is None:
                return await self._store.pointer(tenant, session_id)
        logger.warning("session %s stays untaught on this model: %s", session_id, reason)
        if len(self._unmendable) >= REMEMBERED_MAX:
            self._unmendable.clear()
        self._unmendable.add(broken)
        return untaught

    async def merged(self, pointer: Pointer, number: int, house: Pointer) -> Derived:
        """One adapter for what a version of a session and its house were taught, derived from
        session_init over both their items; what the session was taught about a prompt counts.

        Raises:
            VersionNotFound, EngineError, SessionStoreError.
        """
        known = await self._store.version_record(pointer.tenant, pointer.session_id, number)
        version = await self._store.version_record(house.tenant, HOUSE, house.version)
        own = await contained(self._store, pointer, known)
        prompts = {item.prompt_key for item in own if item.prompt_key}
        items = await contained(self._store, house, version)
        items = [item for item in items if item.prompt_key not in prompts]
        derived = await self._deriver.derive(
            pointer.tenant, pointer.session_id, [*items, *own], known.record.steps
        )
        if derived.failure is not None:
            raise derived.failure
        return derived

    def stands(self, pointer: Pointer, house: Pointer) -> bool:
        """Whether a session's version in force was derived from the base and from the house that
        are in force; a pinned or imported one stays as it is whatever the house is."""
        if not pointer.version:
            return True
        same_base = pointer.base_fingerprint == self._deriver.artifact.fingerprint
        stays = pointer.pinned or pointer.imported
        return same_base and (stays or pointer.house == self._beneath(house))

    async def purge(self, pointer: Pointer) -> None:
        """Finish a forgetting that a crash left half done.

        Raises:
            EngineError, SessionStoreError.
        """
        tenant, session_id = pointer.tenant, pointer.session_id
        async with self._locks.hold(tenant, session_id):
            now = await self._store.pointer(tenant, session_id)
            if now.unpurged:
                await self._rebuild(tenant, session_id, forgetting=True)

    async def _rebuild(self, tenant: str, session_id: str, forgetting: bool = False) -> str | None:
        """Derive again from the log and promote that; gives the reason where it is refused, and,
        when ``forgetting``, goes to version 0 then.

        What waits for the session's next feedback, or for a pin to be taken off, goes on waiting.
        """
        for _ in range(MAX_RACES):
            derivation = await self._store.derivation(tenant, session_id)
            pointer, house = derivation.pointer, None
            if pointer.imported:  # somebody went back to it meanwhile; it contains no item
                return None
            version = await kept_version(self._store, pointer, pointer.version)
            try:
                items = [item for item in derivation.items if not waits(item)]
                if pointer.pinned and version:
                    items = await contained(self._store, pointer, version)
                if not items:  # what waits is all there is: waiting any longer would lose it
                    items = list(derivation.items)
                if not items:
                    await self._store.promote_untaught(pointer)
                    return None
                record = version.record if version else None
                steps = record.steps if record else None
                if self._houses is not None:
                    house = await self._houses.start(tenant, session_id)
                derived = await self._deriver.derive(
                    tenant, session_id, items, steps, record, house
                )
                if derived.failure is not None:
                    raise derived.failure
                if derived.reason is None:
                    await promote(
                        self._store, self._deriver, pointer, derived, in_force=pointer.pinned
                    )
                    return None
                if await self._refuse_pending(pointer, items, derived.reason):
                    continue
                if forgetting:
                    ids = [item.id for item in items]
                    await self._store.promote_untaught(
                        pointer, refused_ids=ids, refused_reason=derived.reason
                    )
                return derived.reason
            except VersionConflict as conflict:
                logger.info("derive again: %s", conflict)
        raise VersionConflict(f"session {session_id!r} changes faster than it can be derived")

    async def _refuse_pending(self, pointer: Pointer, items: Sequence[Item], reason: str) -> bool:
        """Refuse those that are no part of a version yet; says whether there were any."""
        pending = [item.id for item in items if item.status == "pending"]
        if pending:
            await self._store.refuse(
                pointer.tenant,
                pointer.session_id,
                pending,
                reason,
                incarnation=pointer.incarnation,
            )
        return bool(pending)

    async def _standing(self, tenant: str, session_id: str) -> tuple[Pointer, Pointer]:
        if self._houses is not None:
            return await self._houses.standing(tenant, session_id)
        return await self._store.pointer(tenant, session_id), Pointer(tenant, HOUSE)

    def _beneath(self, house: Pointer) -> str:
        return "" if self._houses is None else self._houses.beneath(house)

    async def _house_of(self, tenant: str, version: Version) -> House | None:
        name = version.record.house
        return await self._houses.kept(tenant, name) if self._houses and name else None
