"""The batched LoRA layer: one forward pass in which every row uses its own adapter.

Attached to a model as forward hooks, so that the model's modules, names and weights stay exactly
as they were. Knows nothing about sessions, caches or how adapters are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adapters.config import LoraSpec
from adapters.state import target_modules

AddLora = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]
"""``output + scale * B A inputs``, of ``output``, ``inputs``, A, B, factors, slots and ``scale``.

``output`` is changed; A, B and their ``FACTORS`` are as whoever gives it keeps them. No gradients.
"""
FACTORS = ".factors"  # ends the name of a module's


@dataclass(frozen=True)
class Rows:
    """Which adapter each row of a forward pass uses, and from which token on.

    ``tensors``: stacked adapters, every tensor with a first axis of S slots.
    ``slots``: (B,) slot of each row; None when the rows are S groups of equal size, in slot order,
    which spares gathering a copy of the adapter for every row.
    ``active``: (B, T) true where the adapter acts; None means on every token.
    ``add``: adds the adapters of ``slots``, active on every token, in one operation without
    gradients; None: PyTorch.
    """

    tensors: Mapping[str, Tensor]
    slots: Tensor | None
    active: Tensor | None = None
    add: AddLora | None = None


def rows_of(tensors: Mapping[str, Tensor], slots: Tensor, active: Tensor | None = None) -> Rows:
    """Rows for ``slots`` (B,), in the cheaper grouped form where they allow it."""
    count = next(iter(tensors.values())).shape[0]
    if slots.numel() % count == 0:
        grouped = torch.arange(count, device=slots.device)
        if torch.equal(slots, grouped.repeat_interleave(slots.numel() // count)):
            return Rows(tensors, None, active)
    return Rows(tensors, slots, active)


class LoraHooks:
    """Adds ``scale * B A x`` to the output of every target module while rows are in use."""

    def __init__(self, model: nn.Module, spec: LoraSpec) -> None:
        """Attach to the target modules of ``model``.

        Raises:
            SpecError: a target matches no usable module.
        """
        self.spec = spec
        self.rows: Rows | None = None
        self._handles: list[RemovableHandle] = []
        for name, module in target_modules(model, spec.targets).items():
            self._handles.append(module.register_forward_hook(_Hook(self, name)))

    @contextmanager
    def use(self, rows: Rows | None) -> Iterator[None]:
        """Let forward passes inside the block use ``rows``; None switches every adapter off."""
        before, self.rows = self.rows, rows
        try:
            yield
        finally:
            self.rows = before

    def remove(self) -> None:
        """Detach from the model."""
        for handle in self._handles:
            handle.remove()


class _Hook:
    def __init__(self, owner: LoraHooks, name: str) -> None:
        self._owner = owner
        self._name_a = f"{name}.lora_A"
        self._name_b = f"{name}.lora_B"
        self._factors = name + FACTORS

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        rows = self._owner.rows
        if rows is None:
            return output
        lora_a, lora_b = rows.tensors[self._name_a], rows.tensors[self._name_b]
        if rows.add is not None and rows.slots is not None:
            factors, scale = rows.tensors[self._factors], self._owner.spec.scale
            return rows.add(output, inputs[0], lora_a, lora_b, factors, rows.slots, scale)
        hidden = inputs[0].to(lora_a.dtype)  # (B, T, in)
        if hidden.ndim == 2:  # a classifier's head sees no tokens
            hidden = hidden.unsqueeze(1)
        if rows.slots is None:
            hidden = hidden.reshape(lora_a.shape[0], -1, hidden.shape[-1])  # (S, B/S * T, in)
        else:
            lora_a = lora_a.index_select(0, rows.slots)  # (B, R, in)
            lora_b = lora_b.index_select(0, rows.slots)  # (B, out, R)
        delta = torch.bmm(torch.bmm(hidden, lora_a.transpose(1, 2)), lora_b.transpose(1, 2))
        delta = delta.view(output.shape)
        if self._owner.spec.scale != 1.0:
            delta = delta * self._owner.spec.scale
        if rows.active is not None:
            delta = torch.where(rows.active.unsqueeze(-1), delta, delta.new_zeros(()))
        return output + delta.to(output.dtype)
