"""Adapters in the host's memory, between storage and the device: least recently used out first.

Knows keys and bytes; knows nothing about slots, sessions, or where an adapter comes from.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import replace

from adapters.state import AdapterState


class HostAdapters:
    """Adapters by key within a budget of bytes. Safe from every thread."""

    def __init__(self, budget_bytes: int, pinned: bool) -> None:
        """Hold nothing yet. ``pinned``: in memory that a GPU copies from without waiting."""
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self.found = 0  # asked for and here or on the device; for whoever asks to count
        self.missed = 0
        self.pinned = pinned
        self._lock = threading.Lock()
        self._held: OrderedDict[str, AdapterState] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: str) -> AdapterState | None:
        """The adapter of that key, where it is here; now the most recently used."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: str, state: AdapterState) -> AdapterState:
        """Keep an adapter, unless it is larger than the budget; returns it as it is kept."""
        size = state.nbytes
        if size > self.budget_bytes:
            return state
        if self.pinned:
            tensors = {name: tensor.pin_memory() for name, tensor in state.tensors.items()}
            state = replace(state, tensors=tensors)
        with self._lock:
            if key in self._held:  # put by another request meanwhile
                return self._held[key]
            while self.used_bytes + size > self.budget_bytes:
                _, oldest = self._held.popitem(last=False)
                self.used_bytes -= oldest.nbytes
            self._held[key] = state
            self.used_bytes += size
        return state
