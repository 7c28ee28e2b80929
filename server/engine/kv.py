"""Keys and values of the sequences being decoded: one preallocated tensor per layer, ours.

Row b holds one sequence from column 0 on; its owner knows how long it is. Knows shapes and
transformers' cache interface; knows nothing about sequences, prompts or adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from adapters.masks import Masks, Windows, additive_masks
from adapters.prefix import Prefix
from server.engine.base import LayerForm

_COLUMN_BLOCK: Final = 64  # capacities are multiples of it, so that few requests reallocate


@dataclass(frozen=True)
class Window:
    """What one forward pass reads and writes: B rows from ``first`` on.

    ``rows``: (B, 1) their numbers. ``positions``: (B, T) column of every new token. ``width``:
    columns that are read.
    """

    first: int
    rows: Tensor
    positions: Tensor
    width: int


class BatchKV:
    """Keys and values of up to ``rows`` sequences, grown and shrunk to what they need."""

    def __init__(
        self,
        layers: Sequence[LayerForm],
        rows: int,
        context_tokens: int,
        budget_bytes: int,
        device: torch.device,
    ) -> None:
        """Hold nothing yet."""
        self._layers = [_Layer(form, device) for form in layers]
        self._token_bytes = sum(form.token_bytes for form in layers)
        self._max_rows = rows
        self._context_tokens = context_tokens
        self._budget_bytes = budget_bytes
        self._shape = (0, 0)
        self._cache = Cache(layers=list(self._layers))

    @property
    def used_bytes(self) -> int:
        """Bytes allocated now."""
        return self._shape[0] * self._shape[1] * self._token_bytes

    def can_hold(self, rows: int, columns: int) -> bool:
        """Whether ``hold`` stays within the budget."""
        rows, columns = self._rounded(rows, columns)
        return rows * columns * self._token_bytes <= self._budget_bytes

    def hold(self, rows: int, columns: int) -> None:
        """Make room for ``rows`` sequences of ``columns`` tokens; what fits stays as it was."""
        if rows <= self._shape[0] and columns <= self._shape[1]:
            return
        self._shape = self._rounded(rows, columns)
        for layer in self._layers:
            layer.resize(*self._shape)

    def clear(self) -> None:
        """Give the memory back. Only when no sequence is left."""
        self._shape = (0, 0)
        for layer in self._layers:
            layer.resize(0, 0)

    def load(self, row: int, prefix: Prefix) -> None:
        """Copy one prompt's keys and values, (1, H, P, D) a layer, to the start of a row."""
        for layer, (keys, values) in zip(self._layers, prefix.layers, strict=bool(prefix.layers)):
            layer.stored_keys[row, :, : keys.shape[2]] = keys[0]
            layer.stored_values[row, :, : values.shape[2]] = values[0]

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first ``tokens`` of one row to another row."""
        for layer in self._layers:
            layer.stored_keys[target, :, :tokens] = layer.stored_keys[source, :, :tokens]
            layer.stored_values[target, :, :tokens] = layer.stored_values[source, :, :tokens]

    def window(self, first: int, starts: Sequence[int], tokens: int) -> tuple[Cache, Window]:
        """Aim the cache at B rows from ``first`` on, each getting ``tokens`` new ones.

        Args:
            starts: B columns where each row's new tokens begin.
        """
        device = self._layers[0].device
        begin = torch.tensor(starts, device=device).unsqueeze(1)
        # Padding behind a row's last new token must stay inside; it is never read.
        positions = (begin + torch.arange(tokens, device=device)).clamp(max=self._shape[1] - 1)
        rows = torch.arange(first, first + len(starts), device=device).unsqueeze(1)
        window = Window(first, rows, positions, min(max(starts) + tokens, self._shape[1]))
        for layer in self._layers:
            layer.aim(window)
        return self._cache, window

    def _rounded(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows to a power of two and columns to whole blocks, neither above its maximum."""
        rows = min(1 << (rows - 1).bit_length(), self._max_rows)
        columns = -(-columns // _COLUMN_BLOCK) * _COLUMN_BLOCK
        return rows, min(columns, self._context_tokens)


def causal_masks(window: Window, windows: Windows, dtype: torch.dtype) -> Masks:
    """Attention masks (B, 1, T, W): a token sees its own row up to itself."""
    columns = torch.arange(window.width, device=window.positions.device)
    back = window.positions.unsqueeze(-1) - columns  # (B, T, W)
    return additive_masks(windows, back >= 0, back, dtype)


class _Layer(CacheLayerMixin):
    """One layer's keys and values, (rows, H, columns, D), as transformers' models write them."""

    is_sliding = False

    def __init__(self, form: LayerForm, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self._form = form
        self._window: Window | None = None
        self.stored_keys = self._zeros(0, 0, form.key)
        self.stored_values = self._zeros(0, 0, form.value)
        self.is_initialized = True

    def resize(self, rows: int, columns: int) -> None:
        self.stored_keys = self._resized(
            self.stored_keys, self._zeros(rows, columns, self._form.key)
        )
        self.stored_values = self._resized(
            self.stored_values, self._zeros(rows, columns, self._form.value)
        )

    def aim(self, window: Window) -> None:
        self._window = window

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write B rows' T new tokens, and return what they read: (B, H, W, D) views."""
        window = self._window
        assert window is not None
        self.stored_keys[window.rows, :, window.positions] = key_states.transpose(1, 2)
        self.stored_values[window.rows, :, window.positions] = value_states.transpose(1, 2)
        rows = slice(window.first, window.first + key_states.shape[0])
        return self.stored_keys[rows, :, : window.width], self.stored_values[
            rows, :, : window.width
        ]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the layer is made with its shapes known."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that are read, and the first of them."""
        return (0 if self._window is None else self._window.width), 0

    def get_seq_length(self) -> int:
        """Columns before the new tokens, of the longest row."""
        if self._window is None:
            return 0
        return self._window.width - self._window.positions.shape[1]

    def get_max_length(self) -> int:
        """Columns there is room for."""
        return int(self.stored_keys.shape[2])

    def _zeros(self, rows: int, columns: int, form: tuple[int, int]) -> Tensor:
        # Zeros, not empty memory: what a mask hides must still be finite.
        heads, width = form
        return torch.zeros(rows, heads, columns, width, dtype=self._form.dtype, device=self.device)

    @staticmethod
    def _resized(old: Tensor, new: Tensor) -> Tensor:
        rows, columns = min(old.shape[0], new.shape[0]), min(old.shape[2], new.shape[2])
        new[:rows, :, :columns] = old[:rows, :, :columns]
        return new
