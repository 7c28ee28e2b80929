"""Deriving a session again from its log: to forget, to mend, to finish a forgetting.

It knows the store and how to derive, no HTTP.
"""

import logging

from server.flows.deriving import Deriver
from server.flows.locks import SessionLocks
from server.flows.outcome import Forgotten
from server.flows.promoting import MAX_RACES, kept_version, promote
from server.sessions import Pointer, SessionStore, VersionConflict

logger = logging.getLogger(__name__)

UNMENDABLE_MAX = 10_000
"""Versions remembered as refused, so that not every request tries them again."""


class Rebuilder:
    """Derives sessions again. Shares its locks with the teacher of this process."""

    def __init__(self, deriver: Deriver, store: SessionStore, locks: SessionLocks) -> None:
        self._deriver = deriver
        self._store = store
        self._locks = locks
        self._unmendable: set[tuple[str, int, str]] = set()  # incarnation, version, fingerprint

    async def forget(self, tenant: str, session_id: str, item_id: int) -> Forgotten:
        """Erase an item and derive without it. Forgetting cannot be refused: where the guard
        refuses what is left, the session is untaught afterwards and ``reason`` says why.

        Raises:
            SessionNotFound, ItemNotFound, EngineError, SessionStoreError: after an EngineError the
                item is erased and its versions go as soon as the engine answers.
        """
        async with self._locks.hold(tenant, session_id):
            result = await self._store.forget(tenant, session_id, item_id)
            reason = None
            if result.derive_again:
                reason = await self._rebuild(tenant, session_id)
                if reason is not None:
                    await self._store.reset(tenant, session_id)
            pointer = await self._store.pointer(tenant, session_id)
        return Forgotten(
            session_id, item_id, pointer.version, result.restored, result.versions, reason
        )

    async def mend(self, pointer: Pointer) -> Pointer:
        """Derive again a version whose bytes are lost, foreign, or of another base.

        Where that is refused, the pointer returned is of version 0: the base answers, and the
        stored version stays for the day that its base comes back.

        Raises:
            EngineError, SessionStoreError.
        """
        tenant, session_id = pointer.tenant, pointer.session_id
        untaught = Pointer(tenant, session_id, exists=True, incarnation=pointer.incarnation)
        broken = (pointer.incarnation, pointer.version, self._deriver.artifact.fingerprint)
        async with self._locks.hold(tenant, session_id):
            now = await self._store.pointer(tenant, session_id)
            if (now.incarnation, now.version) != broken[:2]:
                return now  # somebody else was faster
            if broken in self._unmendable:
                return untaught
            reason = await self._rebuild(tenant, session_id)
            if reason is None:
                return await self._store.pointer(tenant, session_id)
        logger.warning("session %s stays untaught on this model: %s", session_id, reason)
        if len(self._unmendable) >= UNMENDABLE_MAX:
            self._unmendable.clear()
        self._unmendable.add(broken)
        return untaught

    async def purge(self, pointer: Pointer) -> None:
        """Finish a forgetting that a crash left half done.

        Raises:
            EngineError, SessionStoreError.
        """
        tenant, session_id = pointer.tenant, pointer.session_id
        async with self._locks.hold(tenant, session_id):
            now = await self._store.pointer(tenant, session_id)
            if now.unpurged and await self._rebuild(tenant, session_id) is not None:
                await self._store.reset(tenant, session_id)

    async def _rebuild(self, tenant: str, session_id: str) -> str | None:
        """Derive again from the log and promote that; gives the reason where it is refused."""
        for _ in range(MAX_RACES):
            derivation = await self._store.derivation(tenant, session_id)
            pointer = derivation.pointer
            try:
                if not derivation.items:
                    await self._store.promote_untaught(pointer)
                    return None
                version = await kept_version(self._store, pointer, pointer.version)
                steps = version.record.steps if version else None
                derived = await self._deriver.derive(tenant, derivation.items, steps)
                if derived.failure is not None:
                    raise derived.failure
                if derived.reason is None:
                    await promote(self._store, self._deriver, pointer, derived)
                    return None
                pending = [item.id for item in derivation.items if item.status == "pending"]
                if not pending:
                    return derived.reason
                await self._store.refuse(tenant, session_id, pending, derived.reason)
            except VersionConflict as conflict:
                logger.info("derive again: %s", conflict)
        raise VersionConflict(f"session {session_id!r} changes faster than it can be derived")
