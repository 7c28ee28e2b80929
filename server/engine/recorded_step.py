"""The decode step as recordings.

Knows what a step reads and writes; knows nothing about batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from adapters.layer import AddLora, Rows
from adapters.state import tensor_shapes
from server.engine.base import Base
from server.engine.forward import Step, run
from server.engine.fused import Fused, attending, fused_operations
from server.engine.kv import BatchKV, KeysValues, Window, store
from server.engine.linear import packed_weights, using_packed
from server.engine.recording import CHECKED, RECORDED, check, record, recorded_or_none
from server.engine.slots import UNTAUGHT, compact


def recorded_step(base: Base, own: bool = True) -> Step | None:
    """A recorded decode step; None, and a word in the log, where it does not work.

    ``own``: by operations of our own, where there are some.
    """
    fused = fused_operations(base) if own else None
    if fused is not None:
        what = "decode steps are recorded without our own operations"
        step = recorded_or_none(lambda: RecordedStep(base, fused), what)
        if step is not None:
            return step
    return recorded_or_none(lambda: RecordedStep(base), "decode steps are not recorded")


class RecordedStep:
    """A decode step as two recordings, with adapters and without."""

    def __init__(self, base: Base, fused: Fused | None = None) -> None:
        """Record, and compare with the model's own code at other numbers of rows and columns.

        ``fused``: operations of our own to record in the place of PyTorch's.

        Raises:
            RecordingError: a recording cannot give, or does not give, the same logits.
            Exception: what an architecture's code raises when it is traced.
        """
        self.add: AddLora | None = fused.add if fused else None
        self._base = base
        self._fused = fused
        shapes = tensor_shapes(base.model, base.spec)
        self._names = tuple(compact(_zeros(shapes)) if self.add else shapes)
        self._packed = packed_weights(base.model)
        self._untaught = self._record({})
        self._taught = self._record(shapes)

    def __call__(
        self, kv: BatchKV, tokens: Sequence[int], starts: Sequence[int], rows: Rows | None
    ) -> Tensor:
        """See `Step`."""
        ids = torch.tensor(tokens, device=self._base.device).unsqueeze(1)
        window = kv.window(0, starts, 1)
        in_slots = rows is not None and rows.slots is not None
        if in_slots and self.add is None:  # adapters too large to be put together
            return run(self._base, ids, window, kv.layers, rows)
        recording = self._untaught if rows is None else self._taught
        logits: Tensor = recording(*self._inputs(ids, window, kv.layers, rows))
        return logits

    def _inputs(
        self, ids: Tensor, window: Window, layers: Sequence[KeysValues], rows: Rows | None
    ) -> tuple[Any, ...]:
        flat = [tensor for pair in layers for tensor in pair]
        # A recording takes no empty list.
        adapters = [ids] if rows is None else [rows.tensors[name] for name in self._names]
        slots = ids if rows is None or rows.slots is None else rows.slots
        packed = self._packed or [ids]
        return ids, window.rows, window.positions, window.columns, flat, adapters, slots, packed

    @torch.no_grad()
    def _record(self, shapes: Mapping[str, tuple[int, ...]]) -> Callable[..., Any]:
        base, names, fused, add = self._base, self._names, self._fused, self.add

        def step(
            ids: Tensor,
            numbers: Tensor,
            positions: Tensor,
            columns: Tensor,
            flat: list[Tensor],
            adapters: list[Tensor],
            slots: Tensor,
            packed: list[Tensor],
        ) -> Tensor:
            window = Window(0, numbers, positions, columns, fused.store if fused else store)
            layers = list(zip(flat[::2], flat[1::2], strict=True))
            taught = dict(zip(names, adapters, strict=True)) if shapes else {}
            rows = Rows(taught, slots if add else None, add=add) if shapes else None
            attention = attending(base) if fused else nullcontext()
            with attention, using_packed(base.model, packed[: len(self._packed)]):
                return run(base, ids, window, layers, rows)

        generator = torch.Generator(base.device).manual_seed(0)
        example = self._inputs(*self._asked(*_trial(base, shapes, *RECORDED, generator)))
        recording = record(base, step, example)
        for count, width in CHECKED:
            trial = _trial(base, shapes, count, width, generator)
            check(base, recording(*self._inputs(*self._asked(*trial))), run(base, *trial))
        return recording

    def _asked(
        self, ids: Tensor, window: Window, layers: list[KeysValues], rows: Rows | None
    ) -> tuple[Tensor, Window, list[KeysValues], Rows | None]:
        """The same with ``rows``, which are in slots, as `Slots` give them to this step."""
        if rows is None or rows.slots is None:
            return ids, window, layers, None
        if self.add is None:
            gathered = {name: tensor[rows.slots] for name, tensor in rows.tensors.items()}
            return ids, window, layers, Rows(gathered, None)
        return ids, window, layers, Rows(compact(rows.tensors), rows.slots, add=self.add)


def _zeros(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def _trial(
    base: Base,
    shapes: Mapping[str, tuple[int, ...]],
    count: int,
    width: int,
    generator: torch.Generator,
) -> tuple[Tensor, Window, list[KeysValues], Rows | None]:
    """Invented arguments of a step of ``count`` rows that reads ``width`` columns.

    The first row is untaught.
    """

    def numbers(end: int, *shape: int) -> Tensor:
        return torch.randint(end, shape, generator=generator, device=base.device)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=base.device)

    width = min(width, base.context_tokens)
    positions = numbers(width, count, 1)
    every = torch.arange(count, device=base.device).unsqueeze(1)
    window = Window(0, every, positions, torch.arange(width, device=base.device))
    layers = [
        (
            noise(count, form.key[0], width, form.key[1]).to(form.dtype),
            noise(count, form.value[0], width, form.value[1]).to(form.dtype),
        )
        for form in base.layers
    ]
    adapters = {name: 0.02 * noise(count, *shape) for name, shape in shapes.items()}
    for tensor in adapters.values():
        tensor[UNTAUGHT] = 0
    rows = Rows(adapters, torch.arange(count, device=base.device)) if shapes else None
    return numbers(base.vocabulary, count, 1), window, layers, rows
