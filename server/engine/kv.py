"""Keys and values of the sequences being decoded: one preallocated tensor per layer, ours.

Row b holds one sequence from column 0 on; its owner knows how long it is. Knows shapes and
transformers' cache interface; knows nothing about sequences, prompts or adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from adapters.masks import Masks, Windows, additive_masks
from adapters.prefix import Prefix
from server.engine.base import LayerForm

KeysValues = tuple[Tensor, Tensor]
Store = Callable[[Tensor, Tensor, Tensor, Tensor], object]
"""Writes new tokens' keys or values: (R, H, C, D) that is kept gets (B, H, T, D), at rows (B, 1)
and columns (B, T)."""
_COLUMN_BLOCK: Final = 64  # capacities are multiples of it, so that few requests reallocate


def store(kept: Tensor, states: Tensor, rows: Tensor, columns: Tensor) -> None:
    """What ``Store`` says, by PyTorch."""
    kept[rows, :, columns] = states.transpose(1, 2)


@dataclass(frozen=True)
class Window:
    """What one forward pass reads and writes: B rows from ``first`` on.

    ``rows``: (B, 1) their numbers. ``positions``: (B, T) column of every new token. ``columns``:
    (W,) numbers of those that are read, from 0 on; not only how many, so that a recorded pass can
    be run again with more. ``store``: how new tokens are written.
    """

    first: int
    rows: Tensor
    positions: Tensor
    columns: Tensor
    store: Store = store


class BatchKV:
    """Keys and values of up to ``rows`` sequences, grown and shrunk to what they need.

    ``layers``: of each decoder layer, (rows, H, columns, D) and (rows, H', columns, D').
    """

    def __init__(
        self,
        layers: Sequence[LayerForm],
        rows: int,
        context_tokens: int,
        budget_bytes: int,
        device: torch.device,
    ) -> None:
        """Hold nothing yet."""
        # Graphs are bound to the memory they were captured with, so on a GPU it is kept.
        self._stays = device.type == "cuda"
        self._device = device
        self.layers: list[KeysValues] = [
            (_nothing(form.key, form.dtype, device), _nothing(form.value, form.dtype, device))
            for form in layers
        ]
        self._token_bytes = sum(form.token_bytes for form in layers)
        self._max_rows = rows
        self._context_tokens = context_tokens
        self._budget_bytes = budget_bytes
        self._shape = (0, 0)

    @property
    def used_bytes(self) -> int:
        """Bytes allocated now."""
        return self._shape[0] * self._shape[1] * self._token_bytes

    def can_hold(self, rows: int, columns: int) -> bool:
        """Whether ``hold`` stays within the budget."""
        return self.bytes_of(rows, columns) <= self._budget_bytes

    def bytes_of(self, rows: int, columns: int) -> int:
        """Bytes that ``hold`` takes from nothing."""
        rows, columns = self._rounded(rows, columns)
        return rows * columns * self._token_bytes

    def hold(self, rows: int, columns: int) -> None:
        """Make room for ``rows`` sequences of ``columns`` tokens; what fits stays as it was."""
        if rows <= self._shape[0] and columns <= self._shape[1]:
            return
        if self._stays and self.can_hold(max(rows, self._shape[0]), max(columns, self._shape[1])):
            rows, columns = max(rows, self._shape[0]), max(columns, self._shape[1])
        self._resize(*self._rounded(rows, columns))

    def clear(self) -> None:
        """Give the memory back, unless graphs may need it again. Only without sequences."""
        if not self._stays:
            self._resize(0, 0)

    def load(self, row: int, prefix: Prefix) -> None:
        """Copy one prompt's keys and values, (1, H, P, D) a layer, to the start of a row."""
        for stored, new in zip(self.layers, prefix.layers, strict=bool(prefix.layers)):
            for kept, given in zip(stored, new, strict=True):
                kept[row, :, : given.shape[2]] = given[0]

    def blank(self, row: int) -> None:
        """Forget what a row holds: what is not finite would shine through any mask."""
        for stored in self.layers:
            for kept in stored:
                kept[row] = 0

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first ``tokens`` of one row to another row."""
        for stored in self.layers:
            for kept in stored:
                kept[target, :, :tokens] = kept[source, :, :tokens]

    def window(self, first: int, starts: Sequence[int], tokens: int) -> Window:
        """B rows from ``first`` on, each getting ``tokens`` new ones.

        Args:
            starts: B columns where each row's new tokens begin.
        """
        begin = torch.tensor(starts, device=self._device).unsqueeze(1)
        offsets = torch.arange(tokens, device=self._device)
        # Padding behind a row's last new token must stay inside; it is never read.
        positions = (begin + offsets).clamp(max=self._shape[1] - 1)
        width = min(max(starts) + tokens, self._shape[1])
        rows = torch.arange(first, first + len(starts), device=self._device).unsqueeze(1)
        return Window(first, rows, positions, torch.arange(width, device=self._device))

    def _resize(self, rows: int, columns: int) -> None:
        """Have room for so much, and keep of what was there what still fits."""
        try:
            for index, (keys, values) in enumerate(self.layers):  # one after the other: less memory
                self.layers[index] = _resized(keys, rows, columns), _resized(values, rows, columns)
            self._shape = rows, columns
        except BaseException:  # out of memory half-way: nothing is left, rather than a half
            self.layers = [(_resized(k, 0, 0), _resized(v, 0, 0)) for k, v in self.layers]
            self._shape = (0, 0)
            raise

    def _rounded(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows to a power of two and columns to whole blocks, neither above its maximum."""
        rows = min(1 << (rows - 1).bit_length(), self._max_rows)
        columns = -(-columns // _COLUMN_BLOCK) * _COLUMN_BLOCK
        if self._stays:
            columns = 1 << (columns - 1).bit_length()
        return rows, min(columns, self._context_tokens)


def causal_masks(window: Window, windows: Windows, dtype: torch.dtype) -> Masks:
    """Attention masks (B, 1, T, W): a token sees its own row up to itself."""
    back = window.positions.unsqueeze(-1) - window.columns  # (B, T, W)
    return additive_masks(windows, back >= 0, back, dtype)


def cache_of(layers: Sequence[KeysValues], window: Window) -> Cache:
    """What a transformers model reads and writes in one forward pass over ``window``."""
    return Cache(layers=[_Layer(keys, values, window) for keys, values in layers])


class _Layer(CacheLayerMixin):
    """One layer's keys and values of the rows in a window, as transformers' models write them."""

    is_sliding = False

    def __init__(self, stored_keys: Tensor, stored_values: Tensor, window: Window) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stored_keys = stored_keys
        self._stored_values = stored_values
        self._window = window
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write B rows' T new tokens, and return what they read: (B, H, W, D) views."""
        window = self._window
        window.store(self._stored_keys, key_states, window.rows, window.positions)
        window.store(self._stored_values, value_states, window.rows, window.positions)
        rows = slice(window.first, window.first + key_states.shape[0])
        width = window.columns.shape[0]
        return self._stored_keys[rows, :, :width], self._stored_values[rows, :, :width]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the layer is made with its shapes known."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that are read, and the first of them."""
        return self._window.columns.shape[0], 0

    def get_seq_length(self) -> int:
        """Columns before the new tokens, of the longest row."""
        return self._window.columns.shape[0] - self._window.positions.shape[1]

    def get_max_length(self) -> int:
        """Columns there is room for."""
        return int(self._stored_keys.shape[2])


def _nothing(form: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    heads, width = form
    return torch.zeros(0, heads, 0, width, dtype=dtype, device=device)


def _resized(old: Tensor, rows: int, columns: int) -> Tensor:
    # Zeros, not empty memory: what a mask hides must still be finite.
    new = old.new_zeros(rows, old.shape[1], columns, old.shape[3])
    rows, columns = min(old.shape[0], rows), min(old.shape[2], columns)
    new[:rows, :, :columns] = old[:rows, :, :columns]
    return new
