"""What each item did to a version: its adapter beside one that is derived without the item.

Leave-one-out, exactly: influence functions (Koh and Liang 2017, arXiv 1703.04730) approximate it
where training again is too dear, which a few steps over a few items are not. It changes nothing,
and no budget pays for it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from adapters.norms import weight_change
from adapters.state import AdapterState, Tensors
from server.flows.deriving import Deriver
from server.flows.house import House
from server.flows.housing import Houses
from server.flows.promoting import contained
from server.sessions import IMPORTED, Item, Pointer, SessionStore, Version

MOST_ITEMS = 16
"""Of a version that is looked at: it takes a derivation for each."""


class NotDivisible(ValueError):
    """A version cannot be taken apart; the message says why."""


@dataclass(frozen=True)
class Influence:
    """What an item did to a version.

    ``share``: how far the adapter would be from where it is, as a share of its way from the start.
    The only item's is 1; one that the others say too has little. None where nothing can be derived
    without it.
    """

    item_id: int
    share: float | None


class Influences:
    """Takes versions apart on one engine."""

    def __init__(self, store: SessionStore, deriver: Deriver, houses: Houses) -> None:
        self._store = store
        self._deriver = deriver
        self._houses = houses

    async def of(self, pointer: Pointer, number: int, adapter: AdapterState) -> list[Influence]:
        """The influence of every item of a version, whose ``adapter`` it is.

        Raises:
            NotDivisible: it was imported, comes from another model, from a version of the house
                that is not kept, or from too many items.
            VersionNotFound, EngineError, SessionStoreError.
        """
        known = await self._store.version_record(pointer.tenant, pointer.session_id, number)
        if known.record.start == IMPORTED or not self._deriver.makes(known.record):
            raise NotDivisible(f"version {number} was not derived from items on this model")
        items = await contained(self._store, pointer, known)
        if len(items) > MOST_ITEMS:
            raise NotDivisible(
                f"version {number} contains {len(items)} items; at most {MOST_ITEMS} can be taken "
                "apart, with a derivation for each"
            )
        house = None
        if known.record.house:
            house = await self._houses.kept(pointer.tenant, known.record.house)
            if house is None:
                raise NotDivisible(f"the house that version {number} came from is not kept")
        start = self._deriver.artifact.start.tensors if house is None else house.state.tensors
        without: list[Tensors | None] = [start]  # where there is one item only
        if len(items) != 1:
            others = [[one for one in items if one is not item] for item in items]
            without = await asyncio.gather(
                *(self._derived(pointer, known, some, house) for some in others)
            )
        shares = await asyncio.to_thread(_shares, adapter, without, start)
        return [Influence(item.id, share) for item, share in zip(items, shares, strict=True)]

    async def _derived(
        self, pointer: Pointer, known: Version, items: list[Item], house: House | None
    ) -> Tensors | None:
        derived = await self._deriver.derive(
            pointer.tenant,
            pointer.session_id,
            items,
            known.record.steps,
            house=house,
            charged=False,
        )
        if derived.failure is not None:
            raise derived.failure
        return None if derived.candidate is None else derived.candidate.state.tensors


def _shares(
    adapter: AdapterState, without: Sequence[Tensors | None], start: Tensors
) -> list[float | None]:
    scale = adapter.spec.scale
    whole = weight_change(adapter.tensors, start, scale)
    return [
        weight_change(adapter.tensors, one, scale) / whole if one is not None and whole else None
        for one in without
    ]
