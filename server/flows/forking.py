"""A new session that begins with what another one was taught.

It knows the log's items; how they become an adapter, others know.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.flows.promoting import kept_version
from server.sessions import IMPORTED, NewItem, SessionNotFound, SessionStore, VersionNotFound


@dataclass(frozen=True)
class Forked:
    """A session whose log is written; its adapter still has to be derived, where it has items."""

    items: tuple[int, ...]
    incarnation: str
    steps: int | None


async def fork(
    store: SessionStore,
    tenant: str,
    source: str,
    session_id: str,
    version: int | None = None,
    alone: bool = False,
) -> Forked:
    """Make a session that is taught what ``source`` is, or what a kept version of it was.

    Its log begins with copies of the items, so that it needs the other session no more. What waits
    in the other's log is not copied: it is not what that session was taught. It does without the
    house where it is to be ``alone`` or the other is.

    Raises:
        SessionNotFound, VersionNotFound, SessionExists, SessionStoreError: nothing was made.
    """
    pointer = await store.pointer(tenant, source)
    if not pointer.exists:
        raise SessionNotFound(f"there is no session {source!r} to fork from")
    number = pointer.version if version is None else version
    known = await kept_version(store, pointer, number)
    if number and known is None:
        raise VersionNotFound(f"session {source!r} has no version {number} (any more)")
    origin, alone = f"version {number} of session {source}", alone or pointer.alone
    if known and known.record.start == IMPORTED:  # there is nothing to derive it from
        snapshot = await store.snapshot(tenant, source, number)
        await store.adopt(tenant, session_id, snapshot, known.record, origin=origin, alone=alone)
        return Forked((), "", None)
    ids = known.record.item_ids if known else ()
    every = await store.items(tenant, source, limit=max(ids, default=0))
    wanted = set(ids)
    items = [item for item in every if item.id in wanted and item.status != "forgotten"]
    if version is not None and len(items) < len(ids):
        raise VersionNotFound(
            f"version {version} of session {source!r} contains items that were forgotten; "
            "fork from another version"
        )
    copies = [
        NewItem(item.kind, _copy(item.payload), item.prompt_key, item.rated) for item in items
    ]
    appended = await store.append(
        tenant, session_id, copies, origin=origin, only_new=True, alone=alone
    )
    steps = known.record.steps if known else None
    return Forked(appended.item_ids, appended.incarnation, steps)


def _copy(payload: Mapping[str, Any]) -> dict[str, Any]:
    """It was applied: whatever made it wait before does not any more."""
    return {name: value for name, value in payload.items() if name != "deferred"}
