"""Which adapter answers a session: a version of its own, its house's, or none at all.

It knows the engine and the session store, and that lost versions can be derived again; it knows no
questions and nothing of HTTP.
"""

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from adapters.artifact import Artifact
from adapters.config import AdapterError
from adapters.state import AdapterState
from server.engine import AdapterRef, Delta, Engine, Finished, GenerateRequest
from server.flows.housing import Houses
from server.flows.loading import UNUSABLE, Loader
from server.flows.rebuilding import Rebuilder
from server.sessions import HOUSE, IMPORTED, Pointer, SessionStore, VersionNotFound

logger = logging.getLogger(__name__)

Standing = tuple[Pointer, Pointer]
"""Where a session stands, and its house."""


class VersionUnusable(AdapterError, ValueError):
    """The version that was asked for cannot answer on the model that is served now."""


@dataclass(frozen=True)
class Chosen:
    """A version that answers: the session's own, the house's for an untaught session, or none."""

    pointer: Pointer
    number: int  # 0: the base answers
    house: str = ""  # the name of the house's version that it is or contains
    beside: Pointer | None = None  # the house, where that answers what is nearer to it

    @property
    def adapter_version(self) -> int:
        """The session's version; 0 where it has none of its own."""
        return 0 if self.pointer.session_id == HOUSE else self.number

    @property
    def contained_house(self) -> int:
        """The house's version that an export of it has in it; 0 is none."""
        if self.beside is not None:
            return self.beside.version
        return int(self.house.partition(".")[2] or 0)

    def house_version(self, finished: Finished) -> int:
        """The house's version that took part in an answer; 0 is none."""
        if finished.house_used and self.beside is not None:
            return self.beside.version
        contained = self.beside is None and finished.adapter_used
        return self.contained_house if contained else 0


NOBODY = Chosen(Pointer("", ""), 0)


class Chooser:
    """Chooses versions; ``rebuilder`` derives those again that are lost, or of another base or
    house."""

    def __init__(
        self,
        artifact: Artifact,
        engine: Engine,
        store: SessionStore,
        rebuilder: Rebuilder,
        houses: Houses,
    ) -> None:
        self._artifact = artifact
        self._engine = engine
        self._store = store
        self._rebuilder = rebuilder
        self._houses = houses
        self._loader = Loader(artifact, store)

    async def standing(self, tenant: str, session_id: str) -> Standing:
        """Read where a session and its house stand now.

        Raises:
            SessionStoreError.
        """
        return await self._houses.standing(tenant, session_id)

    async def run(
        self, standing: Standing | None, version: int | None, request: GenerateRequest
    ) -> AsyncGenerator[tuple[Chosen, Delta | Finished], None]:
        """Run on the engine, each event with the version that answers.

        A version that turns out to be trimmed, lost or foreign while it is loaded is replaced; so
        may its house's be, each once.
        """
        if standing is None:
            async with aclosing(self._engine.generate(request)) as events:
                async for event in events:
                    yield NOBODY, event
            return
        chosen = await self._resolve(standing, version)
        for recoveries in (2, 1, 0):
            started = False
            try:
                async with aclosing(self._generate(request, chosen)) as events:
                    async for event in events:
                        started = True
                        yield chosen, event
                return
            except (*UNUSABLE, VersionNotFound) as error:
                if started or not recoveries:
                    raise
                chosen = await self._recover(standing, chosen, version, error)

    async def adapter(
        self, tenant: str, session_id: str, version: int | None
    ) -> tuple[Chosen, AdapterState]:
        """A kept version and its adapter; the newest for None, derived again if it is lost. An
        untaught session's is its house's.

        Raises:
            SessionStoreError, EngineError.
            VersionUnusable: there is nothing taught, or the version cannot be loaded.
        """
        standing = await self.standing(tenant, session_id)
        return await self._adapter(standing, await self._resolve(standing, version), version)

    async def exported(
        self, tenant: str, session_id: str, version: int | None
    ) -> tuple[Chosen, AdapterState]:
        """As `adapter`, with the house in it: where that answers beside the session, one adapter is
        derived over both their items.

        Raises:
            SessionStoreError, EngineError.
            VersionUnusable: as `adapter`, or nothing can be both.
        """
        standing = await self.standing(tenant, session_id)
        chosen = await self._resolve(standing, version)
        if chosen.beside is None:
            return await self._adapter(standing, chosen, version)
        both = await self._rebuilder.merged(chosen.pointer, chosen.number, chosen.beside)
        if both.candidate is None or both.reason is not None:
            raise VersionUnusable(
                f"session {session_id!r} and its house cannot be one adapter: {both.reason}"
            )
        return chosen, both.candidate.state

    async def _adapter(
        self, standing: Standing, chosen: Chosen, version: int | None
    ) -> tuple[Chosen, AdapterState]:
        if chosen.number:
            try:
                return chosen, await self._load(chosen)
            except (*UNUSABLE, VersionNotFound) as error:
                chosen = await self._recover(standing, chosen, version, error)
        if not chosen.number:
            name = standing[0].session_id
            raise VersionUnusable(f"session {name!r} has no adapter: it is untaught")
        try:
            return chosen, await self._load(chosen)
        except UNUSABLE as error:
            raise _unusable(chosen.number, error) from error

    async def _recover(
        self,
        standing: Standing,
        chosen: Chosen,
        version: int | None,
        error: Exception,
    ) -> Chosen:
        """What to use instead of a version that cannot be loaded; itself where it is mended.

        Raises:
            VersionNotFound, VersionUnusable: ``version`` was asked for, and no other will do.
        """
        own, house = standing
        if chosen.pointer.session_id == HOUSE:
            version = None  # nobody asks for one of the house's
        if isinstance(error, VersionNotFound):
            if version is not None:
                raise error
            # Promoted past it since the pointer was read.
            return await self._resolve(
                await self._houses.standing(own.tenant, own.session_id), version
            )
        pointer, number = chosen.pointer, chosen.number
        logger.info("session %s is derived again: %s", pointer.session_id, error)
        if await self._rebuilder.restore(pointer, number):
            return chosen
        if version is not None:
            raise _unusable(version, error)
        if pointer.session_id == HOUSE:
            pointer = await self._houses.mend(pointer)
            return Chosen(pointer, pointer.version, pointer.name)
        return self._newest(await self._rebuilder.mend(pointer), house)

    async def _resolve(self, standing: Standing, version: int | None) -> Chosen:
        """The version that answers; None is the newest. Without one of the session's own, it is the
        house's."""
        own, house = standing
        if version is None:
            if own.pinned and own.unpurged:  # it contains what was forgotten, and moves only so
                await self._rebuilder.purge(own)
                own, house = await self._houses.standing(own.tenant, own.session_id)
            if not self._rebuilder.stands(own, house):
                own = await self._rebuilder.mend(own)
            return self._newest(own, house)
        if not version:
            return self._newest(replace(own, version=0), house)
        name, fingerprint, imported = own.house, own.base_fingerprint, own.imported
        if version != own.version:
            known = await self._store.version_record(own.tenant, own.session_id, version)
            name, fingerprint = known.record.house, known.record.base_fingerprint
            imported = known.record.start == IMPORTED
            if fingerprint != self._artifact.fingerprint:
                raise VersionUnusable(
                    f"version {version} belongs to another base model than the one "
                    "served now: leave adapter_version out to use the newest"
                )
        stays = own.imported or (own.pinned and not own.unpurged)
        if name != self._houses.beneath(house) and not (stays and version == own.version):
            raise VersionUnusable(
                f"version {version} was derived from another version of the house than the one in "
                "force: leave adapter_version out to use the newest"
            )
        taken = replace(own, version=version, imported=imported)
        return Chosen(own, version, name, self._houses.beside(taken, house))

    def _newest(self, own: Pointer, house: Pointer) -> Chosen:
        """The session's version in force, or else its house's."""
        if own.version:
            return Chosen(own, own.version, own.house, self._houses.beside(own, house))
        return Chosen(house, house.version, house.name)

    def _generate(
        self, request: GenerateRequest, chosen: Chosen
    ) -> AsyncGenerator[Delta | Finished, None]:
        if not chosen.number:
            return self._engine.generate(request)
        beside = chosen.beside
        house = None
        if beside is not None:
            house = AdapterRef(_key(beside, beside.version), lambda: self._houses.state(beside))
        pointer, number = chosen.pointer, chosen.number
        adapter = AdapterRef(_key(pointer, number), lambda: self._loader.answering(pointer, number))
        return self._engine.generate(replace(request, adapter=adapter, house=house))

    async def _load(self, chosen: Chosen) -> AdapterState:
        return await self._loader.load(chosen.pointer, chosen.number)


def _key(pointer: Pointer, number: int) -> str:
    # The incarnation is in it: a session deleted and made again counts from 1 again.
    return f"{pointer.tenant}/{pointer.session_id}/{pointer.incarnation}.{number}"


def _unusable(version: int, error: Exception) -> VersionUnusable:
    return VersionUnusable(
        f"version {version} cannot be loaded: leave adapter_version out to use the newest ({error})"
    )
