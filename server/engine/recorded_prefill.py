"""The pass over prompts, of which the base makes keys and values, as a recording.

Knows what such a pass reads and gives; knows nothing about who asks for prompts, or of adapters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adapters.prefix import Layers, Pass, Prefix, one_pass
from server.engine.base import Base
from server.engine.linear import packed_weights, using_packed
from server.engine.recording import CHECKED, RECORDED, check, record, recorded_or_none


def recorded_prefill(base: Base) -> Pass | None:
    """A recorded pass; None, and a word in the log, where it does not work."""
    return recorded_or_none(lambda: RecordedPrefill(base), "prompts' passes are not recorded")


class RecordedPrefill:
    """`adapters.prefix.one_pass` of the base without adapters."""

    def __init__(self, base: Base) -> None:
        """Record, and compare with the model's own code at other numbers of rows and tokens.

        Raises:
            RecordingError: a recording cannot give, or does not give, the same.
            Exception: what an architecture's code raises when it is traced.
        """
        self._base = base
        self._packed = packed_weights(base.model)
        generator = torch.Generator(base.device).manual_seed(0)
        example = _trial(base, *RECORDED, 5, generator)
        self._recording = record(base, self._flat_pass, self._inputs(*example))
        for rows, tokens in CHECKED:
            for columns in (7, 0):
                self._check(*_trial(base, rows, tokens, columns, generator))

    def __call__(self, begun: Prefix, ids: Tensor, lengths: Tensor) -> tuple[Layers, Tensor | None]:
        """See `adapters.prefix.one_pass`."""
        flat = self._recording(*self._inputs(begun, ids, lengths))
        summaries = None if self._base.summary_layer is None else flat[-1]
        return tuple(zip(flat[0::2], flat[1::2], strict=False)), summaries

    def _inputs(self, begun: Prefix, ids: Tensor, lengths: Tensor) -> tuple[Any, ...]:
        layers = begun.layers or _no_columns(self._base, ids.shape[0])
        flat = [tensor for pair in layers for tensor in pair]
        return begun.lengths, flat, ids, lengths, self._packed or [ids]  # a list is never empty

    @torch.no_grad()
    def _flat_pass(
        self, before: Tensor, flat: list[Tensor], ids: Tensor, lengths: Tensor, packed: list[Tensor]
    ) -> tuple[Tensor, ...]:
        base = self._base
        begun = Prefix(tuple(zip(flat[0::2], flat[1::2], strict=True)), before)
        with using_packed(base.model, packed[: len(self._packed)]), base.hooks.use(None):
            layers, summaries = one_pass(base.model, base.summary_layer, begun, ids, lengths)
        seen = [] if summaries is None else [summaries]
        return (*(tensor for pair in layers for tensor in pair), *seen)

    @torch.no_grad()
    def _check(self, begun: Prefix, ids: Tensor, lengths: Tensor) -> None:
        found = self._recording(*self._inputs(begun, ids, lengths))
        expected = self._flat_pass(*self._inputs(begun, ids, lengths))
        for one, other in zip(found, expected, strict=True):
            check(self._base, one, other)


def _no_columns(base: Base, rows: int) -> Layers:
    def nothing(heads: int, width: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(rows, heads, 0, width, dtype=dtype, device=base.device)

    return tuple(
        (nothing(*form.key, form.dtype), nothing(*form.value, form.dtype)) for form in base.layers
    )


def _trial(
    base: Base, rows: int, tokens: int, columns: int, generator: torch.Generator
) -> tuple[Prefix, Tensor, Tensor]:
    """Invented arguments: ``rows`` of ``tokens`` that go on from ``columns``."""

    def numbers(start: int, end: int, *shape: int) -> Tensor:
        return torch.randint(start, end, shape, generator=generator, device=base.device)

    def noise(heads: int, width: int, dtype: torch.dtype) -> Tensor:
        shape = rows, heads, columns, width
        return torch.randn(shape, generator=generator, device=base.device).to(dtype)

    tokens = min(tokens, base.context_tokens - columns)
    layers = tuple(
        (noise(*form.key, form.dtype), noise(*form.value, form.dtype)) for form in base.layers
    )
    before = numbers(0, columns + 1, rows)
    ids = numbers(0, base.vocabulary, rows, tokens)
    return Prefix(layers, before), ids, numbers(1, tokens + 1, rows)
