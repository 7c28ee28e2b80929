"""What the engine is doing, as plain numbers that any thread may read."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Final

_WINDOW_S: Final = 10.0


@dataclass(frozen=True)
class EngineStatus:
    """A moment of the engine. Totals count from the start."""

    running: bool  # takes requests
    waiting: int  # generate requests that have no place yet
    prefilling: int  # prompts being computed, also those of adapt jobs
    decoding: int  # sequences in the batch
    choosing: int  # requests that score choices
    rows: int  # sequences the batch has room for
    kv_bytes: int  # allocated for the batch
    slots: int
    slots_resident: int
    slots_pinned: int
    host_adapters: int  # kept in the host's memory, so that nobody loads them again
    host_adapter_bytes: int
    adapter_hits: int  # of requests with an adapter: in the host's memory or on the device
    adapter_misses: int  # loaded from storage
    adapts_waiting: int
    adapts_learning: int
    prefix_cache_blocks: int
    prefix_cache_bytes: int
    prefix_cache_limit_bytes: int
    prefix_cache_hit_tokens: int  # of prompts asked for
    prefix_cache_miss_tokens: int
    tokens_per_s: float  # generated, mean of the last 10 seconds
    generated_tokens: int
    prefilled_tokens: int
    requests_finished: int
    requests_cancelled: int
    requests_failed: int
    adapts_finished: int
    adapts_failed: int


class Rate:
    """Mean growth of a total over the last seconds."""

    def __init__(self) -> None:
        """Start at a total of 0."""
        self._marks: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def mark(self, total: int) -> None:
        """Say what the total is now. One thread only."""
        now = time.monotonic()
        # Ten marks a second are enough, whatever the number of steps.
        if now - self._marks[-1][0] < 0.1:
            return
        self._marks.append((now, total))
        while len(self._marks) > 2 and self._marks[1][0] < now - _WINDOW_S:
            self._marks.popleft()

    def per_s(self, total: int) -> float:
        """Growth per second up to ``total``. Safe from every thread."""
        now = time.monotonic()
        marks = [mark for mark in self._marks.copy() if mark[0] >= now - _WINDOW_S]
        if not marks:
            return 0.0
        begin_s, begin_total = marks[0]
        return (total - begin_total) / max(now - begin_s, 0.1)
