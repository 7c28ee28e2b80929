"""The decode step captured in CUDA graphs over buffers of its own, one graph for each size.

What a step needs from the host goes there in one copy, and nothing waits for the device. Knows
transformers' models and CUDA graphs; knows nothing about batches.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.config import one_line
from adapters.layer import Rows
from server.engine.base import Base
from server.engine.forward import changes_with_length, run
from server.engine.kv import BatchKV, KeysValues, Window

_log = logging.getLogger(__name__)
Replay = Callable[[], Tensor]


def cuda_graph(step: Replay) -> Replay:
    """Capture ``step``, which must read and write tensors that stay where they are."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries set themselves up in the first runs
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph, own = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        # Other threads copy adapters to the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            logits = step()
    except BaseException:
        torch.cuda.set_stream(own)  # a capture that fails stays on its own
        raise

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay


@dataclass
class _Captured:
    """A graph and the memory that it reads adapters from."""

    replay: Replay
    step: Replay  # holds the tensors that the graph reads, which would be freed with it
    rows: Rows | None
    loaded: weakref.ref[Rows] | None = None

    def load(self, rows: Rows | None) -> None:
        """Copy the adapters of ``rows`` to where the graph reads them, unless they are there."""
        if self.rows is None or rows is None:
            return
        if self.loaded is not None and self.loaded() is rows:
            return
        if self.rows.slots is not None and rows.slots is not None:
            self.rows.slots[: len(rows.slots)] = rows.slots
        else:
            for name, tensor in rows.tensors.items():
                self.rows.tensors[name][: len(tensor)] = tensor
        self.loaded = weakref.ref(rows)


class Graphed:
    """A decode step that a graph computes, one for each power of two of rows."""

    add = None  # adapters are read as they are

    def __init__(self, base: Base, capture: Callable[[Replay], Replay] = cuda_graph) -> None:
        """Have no graphs yet; each is captured when its size is first needed."""
        self._base = base
        self._pinned = base.device.type == "cuda"
        self._capture = capture
        if changes_with_length(base):
            self._capture = _uncaptured
        self._layers: list[KeysValues] = []  # that the graphs read and write
        self._graphs: dict[tuple[int, str], _Captured] = {}

    def __call__(
        self, kv: BatchKV, tokens: Sequence[int], starts: Sequence[int], rows: Rows | None
    ) -> Tensor:
        """Logits (B, V) after B ``tokens``, whose keys and values go to columns ``starts``.

        They stay until the next step.
        """
        if not self._layers or self._layers[0][0] is not kv.layers[0][0]:
            self._begin(kv.layers)
        count = len(tokens)
        # Memory of this step's own, which its allocator keeps until the copy is done. Rows behind
        # the batch's write to their own columns 0, which nobody reads.
        inputs = torch.zeros_like(self._inputs, device="cpu", pin_memory=self._pinned)
        inputs[:, :count] = torch.tensor([tokens, starts])
        self._inputs.copy_(inputs, non_blocking=True)
        size = min(1 << (count - 1).bit_length(), self._inputs.shape[1])
        form = _form(rows)
        if (size, form) not in self._graphs:
            self._graphs[size, form] = self._make(size, form, rows)
        captured = self._graphs[size, form]
        captured.load(rows)
        return captured.replay()[:count]

    def _begin(self, layers: Sequence[KeysValues]) -> None:
        """Forget the graphs: they are bound to memory that is no more."""
        self._graphs.clear()
        self._layers = list(layers)
        room = layers[0][0].shape[0]
        self._inputs = torch.zeros(2, room, dtype=torch.long, device=self._base.device)

    def _make(self, size: int, form: str, rows: Rows | None) -> _Captured:
        own = None if rows is None else self._room_for(rows, size, form)
        device = self._base.device
        tokens, positions = self._inputs[:, :size].unsqueeze(2)
        every = torch.arange(size, device=device).unsqueeze(1)
        # All columns there is room for: what lies behind a row's own is masked.
        columns = torch.arange(self._layers[0][0].shape[2], device=device)
        window = Window(0, every, positions, columns)

        def step() -> Tensor:
            return run(self._base, tokens, window, self._layers, own)

        try:
            replay = self._capture(step)
        except Exception as error:  # an architecture whose code asks the device something
            _log.warning("decode steps are not captured and so slower: %s", one_line(error))
            self._capture = _uncaptured
            replay = step
        return _Captured(replay, step, own)

    def _room_for(self, rows: Rows, size: int, form: str) -> Rows:
        """Memory for the adapters of ``size`` rows, in the form of ``rows``."""
        if rows.slots is not None:  # read from the slots themselves, which stay where they are
            return Rows(rows.tensors, torch.zeros(size, dtype=torch.long, device=self._base.device))
        count = 1 if form == "one" else size
        return Rows({n: t.new_zeros(count, *t.shape[1:]) for n, t in rows.tensors.items()}, None)


def _uncaptured(step: Replay) -> Replay:
    """What cannot be captured runs as it is, over the same buffers."""
    return step


def _form(rows: Rows | None) -> str:
    if rows is None:
        return "none"
    if rows.slots is not None:
        return "in slots"
    return "one" if len(next(iter(rows.tensors.values()))) == 1 else "each"
