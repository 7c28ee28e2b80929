"""One forward pass of the batch: each row's new tokens in, the logits after them out.

Nearly every pass is a decode step, one token for every row from row 0 on; `recorded` and `graphed`
do that one faster than the model's own code. Knows the model, the KV and rows of adapters; knows
nothing about requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from adapters.layer import AddLora, Rows
from adapters.prefix import cache_options, pad
from server.engine.base import Base
from server.engine.kv import BatchKV, KeysValues, Window, cache_of, causal_masks


class Step(Protocol):
    """The next token of B rows, from row 0 on."""

    @property
    def add(self) -> AddLora | None:
        """What it adds adapters by, where `Slots` are to keep them for that."""
        ...

    def __call__(
        self, kv: BatchKV, tokens: Sequence[int], starts: Sequence[int], rows: Rows | None
    ) -> Tensor:
        """Logits (B, V) after B ``tokens``, whose keys and values go to columns ``starts``."""


class Forward:
    """Forward passes over rows of the batch."""

    def __init__(self, base: Base, kv: BatchKV, step: Step | None = None) -> None:
        """``step`` computes the decode steps; None: the model's own code."""
        self._base = base
        self._kv = kv
        self._step = step

    @torch.no_grad()  # not inference_mode: models keep tensors of a pass that learning needs later
    def __call__(
        self,
        first: int,
        feeds: Sequence[Sequence[int]],
        starts: Sequence[int],
        rows: Rows | None,
    ) -> Tensor:
        """Logits (B, V) after each row's new tokens.

        Args:
            first: number of the first of the B rows.
            feeds: their new tokens.
            starts: columns where these begin.
        """
        if self._step is not None and first == 0 and all(len(feed) == 1 for feed in feeds):
            return self._step(self._kv, [feed[0] for feed in feeds], starts, rows)
        ids = pad(feeds, 0, self._base.device)  # (B, T)
        window = self._kv.window(first, starts, ids.shape[1])
        lasts = [len(feed) - 1 for feed in feeds]
        return run(self._base, ids, window, self._kv.layers, rows, lasts)


def run(
    base: Base,
    ids: Tensor,
    window: Window,
    layers: Sequence[KeysValues],
    rows: Rows | None,
    lasts: Sequence[int] | None = None,
) -> Tensor:
    """Logits (B, V) at position ``lasts`` of each row of ``ids`` (B, T), by the model's own code.

    Without ``lasts`` it is the last position of all.
    """
    keep = sorted(set(lasts or [ids.shape[1] - 1]))  # nearly always one
    with base.hooks.use(rows):
        output = base.model(
            input_ids=ids,
            position_ids=window.positions,
            attention_mask=causal_masks(window, base.windows, base.dtype),
            logits_to_keep=1 if lasts is None else torch.tensor(keep, device=base.device),
            **cache_options(base.model, cache_of(layers, window)),
        )
    logits: Tensor = output.logits  # (B, len(keep), V)
    if len(keep) == 1:
        return logits[:, 0]
    places = torch.tensor([keep.index(last) for last in lasts or ()], device=base.device)
    return logits[torch.arange(len(places), device=base.device), places]


def changes_with_length(base: Base) -> bool:
    """Whether the model asks how long its sequences became, as a step kept for later cannot."""
    kinds = set(_values_of("rope_type", base.model.config.to_dict()))
    return not kinds.isdisjoint({"dynamic", "longrope"})


def _values_of(key: str, config: object) -> Iterator[object]:
    """Every value of ``key``, at any depth."""
    if not isinstance(config, Mapping):
        return
    for name, value in config.items():
        if name == key:
            yield value
        yield from _values_of(key, value)
