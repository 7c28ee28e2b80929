"""Adapters on the device: which slot of the stacked tensors holds which, least recently used out.

Slot 0 is all zeros and belongs to everybody who is untaught. Decode steps are bound by how fast
adapters come from memory, so where an operation of our own adds them they are there in 16 bits.
Knows keys and tensors; knows nothing about sessions, or where an adapter that is not here comes
from.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from adapters.layer import FACTORS, AddLora, Rows
from adapters.state import AdapterState

UNTAUGHT: Final = 0
# Adapters of a batch are copied together once and used by every step until the batch changes;
# larger ones module by module in every step.
_GATHERED_BYTES: Final = 128 * 2**20


@dataclass
class _Resident:
    slot: int
    state: AdapterState  # the host's copy: a request that found it never has to load it again
    pins: int = 0


def compact(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An adapter as our operation reads it: each module's A and B in 16 bits, and their factors.

    A (..., R, in) and B (..., out, R) become int16 (..., R, width), by a factor (..., R) that is
    the product of both rows': each number is within 1/65534 of its row's longest.
    """
    in_16_bits = torch.ops.innerloop.in_16_bits
    kept: dict[str, Tensor] = {}
    for name in tensors:
        module = name.removesuffix(".lora_A")
        if module != name:
            down, of_down = in_16_bits(tensors[name])
            up, of_up = in_16_bits(tensors[f"{module}.lora_B"].mT)
            kept |= {name: down, f"{module}.lora_B": up, module + FACTORS: of_down * of_up}
    return kept


class Slots:
    """A fixed number of adapters of one form, stacked on the device."""

    def __init__(
        self,
        form: Mapping[str, Tensor],
        count: int,
        device: torch.device,
        add: AddLora | None = None,
    ) -> None:
        """Make room for ``count`` adapters with the shapes and types of ``form``.

        ``add``: what adds compact adapters; None: adapters are kept as they are.
        """
        self.count = count
        self._add = add
        self.tensors = {
            name: torch.zeros(count + 1, *kept.shape, dtype=kept.dtype, device=device)
            for name, kept in self._kept(form).items()
        }
        self._slot_bytes = sum(tensor[0].nbytes for tensor in self.tensors.values())
        self._last: tuple[tuple[int, ...], Rows] | None = None  # what the last rows used
        self._device = device
        self._lock = threading.Lock()
        self._residents: OrderedDict[str, _Resident] = OrderedDict()
        self._free = list(range(count, UNTAUGHT, -1))

    def __len__(self) -> int:
        return len(self._residents)

    @property
    def pinned(self) -> int:
        """Adapters that are in use now. Safe from every thread."""
        with self._lock:
            return sum(resident.pins > 0 for resident in self._residents.values())

    def state(self, key: str) -> AdapterState | None:
        """The adapter of that key, where it is resident. Safe from every thread."""
        with self._lock:
            resident = self._residents.get(key)
            return None if resident is None else resident.state

    def acquire(self, key: str, state: AdapterState) -> int | None:
        """Pin an adapter in a slot, copying it there where it is not resident.

        Engine thread only; undo with ``release``.

        Returns:
            Its slot; None when every slot is pinned by another adapter.
        """
        resident = self._residents.get(key)
        if resident is None:
            with self._lock:
                slot = self._take_slot()
            if slot is None:
                return None
            resident = self._load(slot, state)  # copies; nobody on another thread waits for it
        with self._lock:
            self._residents[key] = resident
            self._residents.move_to_end(key)
            resident.pins += 1
        return resident.slot

    def release(self, key: str) -> None:
        """Undo one ``acquire``. The adapter stays until its slot is needed. Engine thread only."""
        with self._lock:
            self._residents[key].pins -= 1

    def rows(self, slots: Sequence[int]) -> Rows | None:
        """What the LoRA hooks need for rows with these slots; None, all hooks off, if untaught.

        The same object as long as nothing changed. Engine thread only.
        """
        if not any(slots):
            return None
        if self._last is None or self._last[0] != tuple(slots):
            self._last = None  # its memory first
            self._last = tuple(slots), self._rows(slots)
        return self._last[1]

    def _kept(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """An adapter as it is in its slot."""
        return tensors if self._add is None else compact(tensors)

    def _rows(self, slots: Sequence[int]) -> Rows:
        chosen = torch.tensor(slots, device=self._device)
        if self._add is not None:
            return Rows(self.tensors, chosen, add=self._add)
        if len(set(slots)) == 1:  # one group, whose adapter is read where it lies
            first = slots[0]
            return Rows({name: t[first : first + 1] for name, t in self.tensors.items()}, None)
        if len(slots) * self._slot_bytes > _GATHERED_BYTES:
            return Rows(self.tensors, chosen)
        return Rows({name: t.index_select(0, chosen) for name, t in self.tensors.items()}, None)

    def _take_slot(self) -> int | None:
        if self._free:
            return self._free.pop()
        unpinned = (key for key, resident in self._residents.items() if resident.pins == 0)
        oldest = next(unpinned, None)
        return None if oldest is None else self._residents.pop(oldest).slot

    def _load(self, slot: int, state: AdapterState) -> _Resident:
        try:
            self._last = None
            with torch.no_grad():
                kept = self._kept(state.tensors)
                for name, stacked in self.tensors.items():
                    stacked[slot] = kept[name].to(self._device, stacked.dtype, non_blocking=True)
        except BaseException:
            self._free.append(slot)
            raise
        return _Resident(slot, state)
