"""A stored version as an adapter. It knows the artifact and the store."""

import asyncio

from adapters.artifact import Artifact
from adapters.snapshot import SnapshotError, loads
from adapters.state import AdapterState
from server.engine import AdapterMismatch
from server.sessions import Pointer, SessionStore, SnapshotLost

UNUSABLE = (SnapshotError, SnapshotLost, AdapterMismatch)
"""The version's bytes are gone or not ours: its adapter has to be derived again."""


class Loader:
    """Loads versions of one artifact's adapters out of one store."""

    def __init__(self, artifact: Artifact, store: SessionStore) -> None:
        self.artifact = artifact
        self._store = store
        self._shapes = artifact.shapes

    async def load(self, pointer: Pointer, number: int) -> AdapterState:
        """A kept version's adapter.

        Raises:
            VersionNotFound, SnapshotLost, SnapshotError, SessionStoreError.
        """
        data = await self._store.snapshot(pointer.tenant, pointer.session_id, number)
        # A large model's adapter takes long to unpack, and others' text waits on this loop.
        return await asyncio.to_thread(
            loads,
            data,
            spec=self.artifact.spec,
            base_fingerprint=self.artifact.fingerprint,
            shapes=self._shapes,
            start=self.artifact.start,
        )

    async def answering(self, pointer: Pointer, number: int) -> AdapterState:
        """The same, to answer with: it must have been taught under the gate that is served now.

        Raises:
            AdapterMismatch: it was not. As `load`.
        """
        state = await self.load(pointer, number)
        gate, taught = self.artifact.rule.gate, state.taught
        if gate is None:
            return state
        foreign = taught is not None and taught.view != gate.view
        if taught is None:  # an import; or nothing was to be remembered; or there was no gate then
            known = await self._store.version_record(pointer.tenant, pointer.session_id, number)
            foreign = known.record.rule_hash not in ("", self.artifact.rule_hash)
        if foreign:
            raise AdapterMismatch(
                f"version {number} of {pointer.session_id!r} was taught under another gate"
            )
        return state
