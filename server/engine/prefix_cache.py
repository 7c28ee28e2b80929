"""Prompts that the base prefilled, kept by their tokens, least recently used out first.

Only what the base computed alone may enter: such keys and values do not depend on any adapter, so
no update makes them stale. Knows tokens and bytes; knows nothing about requests or models.
"""

from __future__ import annotations

from collections import OrderedDict

from adapters.prefix import Prefix

Tokens = tuple[int, ...]


class PrefixCache:
    """Whole prompts by their exact tokens, within a budget of bytes."""

    def __init__(self, budget_bytes: int) -> None:
        """Hold nothing yet; a budget of 0 keeps it so."""
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[Tokens, Prefix] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, tokens: Tokens) -> Prefix | None:
        """The prompt's keys and values, (1, H, P, D) a layer, now the most recently used."""
        prefix = self._entries.get(tokens)
        if prefix is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(tokens)
        return prefix

    def put(self, tokens: Tokens, prefix: Prefix) -> None:
        """Keep a prompt that the base alone computed; one larger than the budget is not kept."""
        size = prefix_bytes(prefix)
        if tokens in self._entries or size > self.budget_bytes:
            return
        while self.used_bytes + size > self.budget_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.used_bytes -= prefix_bytes(oldest)
        self._entries[tokens] = prefix
        self.used_bytes += size


def prefix_bytes(prefix: Prefix) -> int:
    """Bytes of a prefix's keys and values, and of its summary."""
    layers = sum(keys.nbytes + values.nbytes for keys, values in prefix.layers)
    return layers + (0 if prefix.summaries is None else prefix.summaries.nbytes)
