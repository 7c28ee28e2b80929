"""Whether a session has room for more feedback.

It knows the store's items and how many may derive, not how they get into the log.
"""

from collections.abc import Sequence

from server.flows.outcome import SessionFull
from server.sessions import HOUSE, STRENGTHS, Item, NewItem, SessionStore, called

MAX_ITEMS = 256
"""Items of one session that derive. An inner step's time grows with them."""


async def check_room(
    store: SessionStore, tenant: str, session_id: str, new: Sequence[NewItem]
) -> None:
    """Refuse items that would add to a session which is taught by as many as it may be.

    Those that supersede as many others add nothing.

    Raises:
        SessionFull, SessionStoreError.
    """
    pointer = await store.pointer(tenant, session_id)
    if pointer.pending + pointer.applied + len(new) <= MAX_ITEMS:
        return
    derivable = await store.derivable(tenant, session_id)
    left: list[Item | NewItem] = list(derivable)
    for item in new:
        left = [earlier for earlier in left if not _supersedes(item, earlier)]
        left.append(item)
    if len(left) <= max(MAX_ITEMS, len(derivable)):
        return
    place = "/house" if session_id == HOUSE else f"/sessions/{session_id}"
    raise SessionFull(
        f"{called(session_id)} is taught by {len(derivable)} items and takes {MAX_ITEMS}: forget "
        f"some with DELETE {place}/feedback/ITEM"
    )


def _supersedes(later: NewItem, earlier: Item | NewItem) -> bool:
    """Whether it does so for certain: of ratings only those of the same answer are counted, as the
    store may keep others."""
    if later.prompt_key != earlier.prompt_key or not later.prompt_key:
        return False
    if later.kind == "rating" and later.payload["completion"] != earlier.payload["completion"]:
        return False
    return STRENGTHS[later.kind] >= STRENGTHS[earlier.kind]
