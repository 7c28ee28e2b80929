"""The last step of every derivation: its result becomes the session's version.

It knows the store and a candidate's bytes; who asked for the derivation, and why, others know.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from adapters.snapshot import dumps
from server.flows.deriving import UNTEACHABLE, Derived, Deriver
from server.sessions import Pointer, SessionStore, Version, VersionNotFound

MAX_RACES = 32
"""Every lost race means that somebody else's promotion won, so this many is not bad luck."""


async def promote(
    store: SessionStore,
    deriver: Deriver,
    expected: Pointer,
    derived: Derived,
    left_out: Sequence[int] = (),
    key: str | None = None,
    answer: Mapping[str, Any] | None = None,
) -> int:
    """Promote an accepted derivation; returns the version's number.

    Args:
        expected: the pointer that was derived under.
        left_out: pending items that could not be derived over; they are refused.
        key, answer: idempotency key to settle, and with what.

    Raises:
        VersionConflict: the session moved on; derive again.
        SessionStoreError: as `SessionStore.promote`.
    """
    candidate = derived.candidate
    assert candidate is not None
    return await store.promote(
        expected,
        await asyncio.to_thread(dumps, candidate.state),
        deriver.record(derived),
        refused_ids=left_out,
        refused_reason=UNTEACHABLE,
        idempotency_key=key,
        answer=answer,
    )


async def kept_version(store: SessionStore, pointer: Pointer, number: int) -> Version | None:
    """The record of a version, or None where it is not kept (any more)."""
    try:
        return await store.version_record(pointer.tenant, pointer.session_id, number)
    except VersionNotFound:
        return None
