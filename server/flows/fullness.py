"""What more feedback would leave of a session's, and whether there is room for it.

It knows the store's items, who supersedes whom and how many may derive, not how they get into the
log; there `regroup` in `server.sessions.prelude` decides.
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
    if len(left_by(derivable, new)) <= max(MAX_ITEMS, len(derivable)):
        return
    place = "/house" if session_id == HOUSE else f"/sessions/{session_id}"
    raise SessionFull(
        f"{called(session_id)} is taught by {len(derivable)} items and takes {MAX_ITEMS}: forget "
        f"some with DELETE {place}/feedback/ITEM"
    )


def left_by(derivable: Sequence[Item], new: Sequence[NewItem]) -> list[Item | NewItem]:
    """What would derive if ``new`` were appended to what derives now."""
    left: list[Item | NewItem] = list(derivable)
    for item in new:
        left = [earlier for earlier in left if not _supersedes(item, earlier)]
        left.append(item)
    return left


def _supersedes(later: NewItem, earlier: Item | NewItem) -> bool:
    if later.prompt_key != earlier.prompt_key or not later.prompt_key:
        return False
    if later.rated.startswith("-"):
        return later.rated[1:] == earlier.rated[1:]
    return STRENGTHS[later.kind] >= STRENGTHS[earlier.kind]
