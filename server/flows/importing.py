"""A session that begins with an adapter made elsewhere: a PEFT zip becomes its first version.

It knows the artifact and the store, no HTTP. Nobody can derive an imported adapter again, so it is
stored whole, kept as long as its session, and never taught further.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from adapters.artifact import Artifact
from adapters.peft_fit import base_norms, check_form, check_size, fit
from adapters.peft_io import (
    CONFIG_FILE,
    TENSOR_FILE,
    PeftFormatError,
    read_adapter,
    read_form,
)
from adapters.peft_zip import PeftZip
from adapters.snapshot import dumps
from adapters.state import AdapterState
from adapters.tensor_file import HEADER_LIMIT_BYTES, shorten
from server.flows.exporting import ABOUT_FILE
from server.sessions import IMPORTED, Pointer, SessionStore, VersionRecord

JSON_LIMIT_BYTES = 2**20


class Importer:
    """Imports adapters, one at a time: each takes several times its size in memory."""

    def __init__(self, artifact: Artifact, store: SessionStore) -> None:
        self._artifact = artifact
        self._store = store
        self._norms: Mapping[str, float] | None = None
        self._one = asyncio.Lock()

    async def make(self, tenant: str, session_id: str, content: bytes) -> Pointer:
        """Make a session whose version 1 is the adapter in a zip.

        Raises:
            PeftFormatError: the zip is refused; SessionExists; SessionStoreError. Nothing is kept.
        """
        async with self._one:
            state, origin = await asyncio.to_thread(self._read, content)
        # Whole and exact: what it was rounded to could not be had again.
        snapshot = await asyncio.to_thread(dumps, state)
        await self._store.adopt(tenant, session_id, snapshot, self._record(), origin=origin)
        return await self._store.pointer(tenant, session_id)

    def _read(self, content: bytes) -> tuple[AdapterState, str]:
        """The adapter in a zip, in the form of this model's, and where it says it comes from."""
        artifact, archive = self._artifact, PeftZip(content)
        about = _about(archive)
        if about.get("base_fingerprint", artifact.fingerprint) != artifact.fingerprint:
            raise PeftFormatError(
                f"the adapter belongs to the base {shorten(about['base_fingerprint'])}, and this "
                f"server serves {artifact.name} with {artifact.fingerprint}"
            )
        form = read_form(archive.read(CONFIG_FILE, JSON_LIMIT_BYTES))
        check_form(form, artifact.spec, artifact.header)
        elements = sum(tensor.numel() for tensor in artifact.session_init.values())
        data = archive.read(TENSOR_FILE, HEADER_LIMIT_BYTES + 4 * elements)
        state = fit(
            read_adapter(form, data),
            spec=artifact.spec,
            base_fingerprint=artifact.fingerprint,
            shapes=artifact.shapes,
            header=artifact.header,
        )
        norms = self._norms = self._norms or base_norms(artifact.model, artifact.spec)
        check_size(state, norms)
        return state, _origin(about)

    def _record(self) -> VersionRecord:
        return VersionRecord(
            start=IMPORTED,
            item_ids=(),
            rule_hash="",  # no rule makes it
            base_fingerprint=self._artifact.fingerprint,
        )


def _about(archive: PeftZip) -> dict[str, Any]:
    """The note that our own exports carry; other zips need none."""
    if ABOUT_FILE not in archive:
        return {}
    try:
        about = json.loads(archive.read(ABOUT_FILE, JSON_LIMIT_BYTES))
    except (ValueError, RecursionError) as error:
        if isinstance(error, PeftFormatError):
            raise
        raise PeftFormatError(f"{ABOUT_FILE} is not JSON: {error}") from error
    if not isinstance(about, dict):
        raise PeftFormatError(f"{ABOUT_FILE} must hold a JSON object")
    return about


def _origin(about: Mapping[str, Any]) -> str:
    if not about.keys() >= {"session_id", "adapter_version"}:
        return "a PEFT zip"
    session, version = (shorten(about[key]) for key in ("session_id", "adapter_version"))
    return f"an export of session {session}, version {version}"
