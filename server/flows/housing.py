"""A tenant's house: what all its sessions begin with.

The house is a session of the store that no caller can name, taught, rolled back and forgotten like
any other. Where the model has a gate, it answers beside its sessions: each prompt is that one's
which was taught the nearest. Where it has none, sessions are derived from the house's version in
force; each of their versions says which that was, and one that says another is derived again at
its next use. It knows the store and stored adapters, no HTTP.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from adapters.state import AdapterState
from server.flows.house import House
from server.flows.loading import UNUSABLE, Loader
from server.flows.outcome import Forgotten
from server.flows.promoting import MAX_RACES, kept_version
from server.flows.rebuilding import REMEMBERED_MAX, Rebuilder
from server.sessions import (
    HOUSE,
    ItemNotFound,
    Pointer,
    SessionNotFound,
    SessionStore,
    VersionConflict,
    VersionNotFound,
)

logger = logging.getLogger(__name__)


class Houses:
    """The houses of all tenants."""

    def __init__(self, loader: Loader, store: SessionStore, rebuilder: Rebuilder) -> None:
        """``rebuilder`` derives houses again, and knows of none itself."""
        self._loader = loader
        self._beside = loader.artifact.rule.gate is not None
        self._store = store
        self._rebuilder = rebuilder
        self._lost: set[str] = set()  # versions' names, as `Pointer.name`

    async def standing(self, tenant: str, session_id: str) -> tuple[Pointer, Pointer]:
        """Where a session stands, and the house that it builds upon, of the model served now: of
        version 0 where there is none, the session does without, or it is lost to all but those
        that were derived from it.

        Raises:
            EngineError, SessionStoreError.
        """
        own, house = await self._store.standing(tenant, session_id)
        if own.alone or session_id == HOUSE:
            return own, Pointer(tenant, HOUSE)
        if house.version and house.base_fingerprint != self._loader.artifact.fingerprint:
            house = await self._rebuilder.mend(house)
        if own.pinned and own.pinned_house != house.name:
            house = await self._kept(house, own.pinned_house) or house
        if house.name in self._lost and own.house != house.name:
            house = replace(house, version=0)  # without it until it is taught anew
        return own, house

    def beneath(self, house: Pointer) -> str:
        """What a session's version says it was derived from, where this is its house."""
        return "" if self._beside else house.name

    def beside(self, own: Pointer, house: Pointer) -> Pointer | None:
        """The house, where it answers beside this session's own version."""
        needed = self._beside and own.version and not own.imported
        return house if needed and house.version else None

    async def pin(self, tenant: str, session_id: str, pinned: bool) -> Pointer:
        """Have a session keep its version and its house's, or go on with both.

        Raises:
            SessionNotFound, EngineError, SessionStoreError.
        """
        _, house = await self.standing(tenant, session_id)
        kept = house.name if pinned else ""
        return await self._store.pin(tenant, session_id, pinned, house=kept)

    async def start(self, tenant: str, session_id: str) -> House | None:
        """What a session is derived from now; None: from session_init.

        Raises:
            EngineError, SessionStoreError.
        """
        if self._beside:
            return None
        for _ in range(MAX_RACES):
            _, house = await self.standing(tenant, session_id)
            if not house.version or house.name in self._lost:
                return None
            if house.unpurged:  # nothing is to be derived any more from what it forgot
                await self._rebuilder.purge(house)
                continue
            try:
                return await self._load(house)
            except VersionNotFound:  # promoted past it, or deleted, meanwhile
                continue
        raise VersionConflict("the house changes faster than a session can be derived from it")

    async def kept(self, tenant: str, name: str) -> House | None:
        """A version of the house by its name, where it is still kept, or can be had again.

        Raises:
            EngineError, SessionStoreError.
        """
        house = await self._store.pointer(tenant, HOUSE)
        incarnation, _, number = name.partition(".")
        if house.incarnation != incarnation:
            return None
        house = replace(house, version=int(number))
        try:
            return await self._load(house)
        except VersionNotFound:
            return None

    async def state(self, house: Pointer) -> AdapterState:
        """The adapter of a version of the house, derived again if it is lost.

        Raises:
            VersionNotFound: another version is in force by now. EngineError, SessionStoreError.
        """
        try:
            return await self._loader.answering(house, house.version)
        except UNUSABLE as error:
            logger.info("the house of %s is derived again: %s", house.tenant, error)
            if not await self._rebuilder.restore(house, house.version):
                await self.mend(house)
                raise VersionNotFound("the house had to be derived anew: ask again") from error
        return await self._loader.answering(house, house.version)

    async def mend(self, house: Pointer) -> Pointer:
        """The house, derived anew, instead of a version that nobody can have again; of version 0
        where that is refused too: sessions answer without it until it is taught.

        Raises:
            EngineError, SessionStoreError.
        """
        if len(self._lost) >= REMEMBERED_MAX:
            self._lost.clear()
        self._lost.add(house.name)
        return await self._rebuilder.mend(house)

    async def forget(self, tenant: str, item_id: int) -> Forgotten:
        """Erase an item of the house, derive it without, and delete the versions of all sessions
        that contain it. Those in force are derived again at their next use, or soon without one.

        Raises:
            As `Rebuilder.forget`; what is left to do after a crash or an error, `sweep` does.
        """
        async with self._sweeping(tenant):
            return await self._rebuilder.forget(tenant, HOUSE, item_id)

    async def delete(self, tenant: str) -> None:
        """Delete the house, and the versions of all sessions that were derived from it.

        Raises:
            SessionNotFound: there is none. SessionStoreError.
        """
        async with self._sweeping(tenant):
            if not await self._store.delete(tenant, HOUSE):
                raise no_house()

    @asynccontextmanager
    async def _sweeping(self, tenant: str) -> AsyncIterator[None]:
        """Take out of all sessions what the house forgets inside, whatever else goes wrong there.

        Where there was nothing to forget, what a crash may have left is for the background.
        """
        await self._store.expect_sweep(tenant)
        try:
            yield
        except (SessionNotFound, ItemNotFound):
            raise
        except Exception:
            await self._store.sweep(tenant)
            raise
        await self._store.sweep(tenant)

    async def _load(self, house: Pointer) -> House:
        version = await self._store.version_record(house.tenant, HOUSE, house.version)
        state = await self.state(house)
        return House(house, state, version.record.item_ids)

    async def _kept(self, house: Pointer, name: str) -> Pointer | None:
        """The house at an earlier version, or without one; None where that is not kept any more."""
        incarnation, _, number = name.partition(".")
        if not name:
            return replace(house, version=0)
        if house.incarnation != incarnation or house.unpurged:
            return None
        known = await kept_version(self._store, house, int(number))
        if known is None or known.record.base_fingerprint != self._loader.artifact.fingerprint:
            return None
        return replace(house, version=int(number))


def no_house() -> SessionNotFound:
    """Make the error for a house that is not there."""
    return SessionNotFound("this tenant has no house: it begins with its first POST /house/adapt")
