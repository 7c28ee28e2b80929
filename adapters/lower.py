"""The layers below the lowest one whose adapters move: what they compute is the same in every step.

A rule may leave the lower layers' adapters as they are (`InnerRule.still`). Then what enters the
lowest layer that learns is computed once for all steps, and passes begin there. Knows the lists of
layers in transformers' models; knows nothing about steps or sessions.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adapters.prefix import continue_from, prefill

_log = logging.getLogger(__name__)
Pass = Callable[[], object]


class _Reached(Exception):
    """Ends a pass that is run for what enters a layer."""


class _Now(threading.local):
    """What the pass of this thread does; another thread's passes may run in its pauses."""

    entering: Tensor | None = None  # what the lowest learning layer gets, in place of its input
    stops: bool = False  # there, and leaves its input behind
    found: Tensor | None = None


class LowerLayers:
    """The layers of a model that a pass can leave out. None where all layers learn."""

    def __init__(self, model: nn.Module, moving: Collection[str]) -> None:
        """Attach to the model. ``moving``: names of the tensors that inner steps move."""
        self._now = _Now()
        self._skipped, lowest = _split(model, moving)
        for layer in self._skipped:
            layer.__dict__["forward"] = _Skippable(self._now, layer.forward)
        self._handles = []
        if lowest is not None:
            self._handles = [lowest.register_forward_pre_hook(self._enter, with_kwargs=True)]

    def __deepcopy__(self, memo: object) -> LowerLayers:
        """A copy of the model leaves nothing out."""
        return LowerLayers(nn.Module(), ())

    @property
    def count(self) -> int:
        """How many layers a pass leaves out."""
        return len(self._skipped)

    def remove(self) -> None:
        """Detach from the model."""
        for layer in self._skipped:
            layer.__dict__.pop("forward", None)
        for handle in self._handles:
            handle.remove()
        self._skipped, self._handles = [], []

    @torch.no_grad()
    def entering(self, run: Pass) -> Tensor:
        """What enters the lowest learning layer, (B, T, D), when ``run`` runs a forward pass."""
        self._now.stops = True
        try:
            run()
        except _Reached:
            assert self._now.found is not None
            return self._now.found
        finally:
            self._now.stops, self._now.found = False, None
        raise RuntimeError("the pass did not come to the model's layers")

    @contextmanager
    def skipped(self, entering: Tensor | None) -> Iterator[None]:
        """Let passes inside the block begin with ``entering`` (B, T, D); None: at the beginning."""
        self._now.entering = entering
        try:
            yield
        finally:
            self._now.entering = None

    def _enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        now = self._now
        if now.stops:
            now.found = args[0] if args else kwargs["hidden_states"]
            raise _Reached
        if now.entering is None:
            return None
        if args:
            return (now.entering, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": now.entering}


@dataclass(frozen=True)
class Entering:
    """What enters the lowest learning layer, ``hidden`` (B, T, D), in the place of B rows."""

    lower: LowerLayers
    hidden: Tensor

    def rows(self, rows: slice | Tensor) -> Entering:
        """That of some rows."""
        return Entering(self.lower, self.hidden[rows])

    def begun(self) -> AbstractContextManager[None]:
        """Let passes inside the block begin with it."""
        return self.lower.skipped(self.hidden)


class _Skippable:
    """Stands in for the ``forward`` of a layer that some passes leave out."""

    def __init__(self, now: _Now, forward: Callable[..., Any]) -> None:
        self._now = now
        self._forward = forward

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._now.entering is not None:
            return hidden_states
        return self._forward(hidden_states, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        """A copy of the model leaves nothing out."""
        layer: Any = self._forward.__self__  # type: ignore[attr-defined]
        copied: Callable[..., Any] = type(layer).forward.__get__(memo[id(layer)])
        return copied


def lower_layers(model: nn.Module, moving: Collection[str], device: torch.device) -> LowerLayers:
    """The layers that passes may leave out; none where a pass without them is not the same."""
    lower = LowerLayers(model, moving)
    if lower.count and not _is_same(model, lower, device):
        lower.remove()
    return lower


@torch.no_grad()
def _is_same(model: nn.Module, lower: LowerLayers, device: torch.device) -> bool:
    """Whether the upper layers need nothing of the lower ones but what enters them."""
    prefix = prefill(model, [[0, 1, 2], [3]], device)
    ids = torch.tensor([[4, 5], [6, 7]], device=device)
    whole = continue_from(model, prefix, ids)
    try:
        entering = lower.entering(lambda: continue_from(model, prefix, ids))
        with lower.skipped(entering):
            return torch.equal(continue_from(model, prefix, ids), whole)
    except Exception as error:  # model code of any architecture raises anything
        _log.info("lessons pass all layers of this model: without the lower ones, %r", error)
        return False


def _split(model: nn.Module, moving: Collection[str]) -> tuple[list[nn.Module], nn.Module | None]:
    """The layers below the lowest that learns, and that one."""
    for name, layers in model.named_modules():
        if not isinstance(layers, nn.ModuleList):
            continue
        here = f"{name}."
        inside = [tensor.removeprefix(here) for tensor in moving if tensor.startswith(here)]
        if len(inside) < len(moving) or not inside:  # some learn beside the layers, or elsewhere
            continue
        lowest = min(int(tensor.partition(".")[0]) for tensor in inside)
        return list(layers)[:lowest], layers[lowest] if lowest else None
    return [], None
