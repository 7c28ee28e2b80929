"""The last step of every derivation: its result becomes the session's version.

It knows the store and a candidate's bytes; who asked for the derivation, and why, others know.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from server.flows.deriving import UNTEACHABLE, Derived, Deriver
from server.sessions import Item, Pointer, SessionStore, Version, VersionNotFound

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
    unless_pinned: bool = False,
    in_force: bool = False,
) -> int:
    """Promote an accepted derivation; returns the version's number.

    Args:
        expected: the pointer that was derived under.
        left_out: pending items that could not be derived over; they are refused.
        key, answer: idempotency key to settle, and with what.
        in_force: the items are those of a pinned session's version, superseded or not.

    Raises:
        VersionConflict: the session moved on; derive again.
        SessionPinned: it is, and ``unless_pinned``.
        SessionStoreError: as `SessionStore.promote`.
    """
    number = await store.promote(
        expected,
        await deriver.snapshot(derived),
        deriver.record(derived),
        refused_ids=left_out,
        refused_reason=UNTEACHABLE,
        idempotency_key=key,
        answer=answer,
        unless_pinned=unless_pinned,
        in_force=in_force,
    )
    if derived.house is not None:
        await store.taint_since(expected.tenant, expected.session_id, derived.house.pointer)
    return number


async def kept_version(store: SessionStore, pointer: Pointer, number: int) -> Version | None:
    """The record of a version, or None where it is not kept (any more)."""
    try:
        return await store.version_record(pointer.tenant, pointer.session_id, number)
    except VersionNotFound:
        return None


async def contained(store: SessionStore, pointer: Pointer, version: Version) -> list[Item]:
    """The items that a version was derived over, whatever they are now, but for forgotten ones."""
    ids = version.record.item_ids
    if not ids:  # an import
        return []
    first, last = min(ids), max(ids)
    items = await store.items(
        pointer.tenant, pointer.session_id, offset=first - 1, limit=last - first + 1
    )
    wanted = set(ids)
    return [item for item in items if item.id in wanted and item.status != "forgotten"]
