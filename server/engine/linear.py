"""The frozen linear layers by oneDNN, where MKL has nothing for the processor.

PyTorch multiplies float32 matrices with MKL, which uses AVX-512 on its maker's processors only; on
others oneDNN, which PyTorch also brings, is about twice as fast. It reads the same weights in the
same place, or a copy of them in the order that it reads them in, which pays for few rows. Knows
modules and processors; knows nothing about adapters or passes.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from adapters.config import one_line

_log = logging.getLogger(__name__)
# Multiplications below which it is no faster, because a call costs more (measured: 8 rows by 192 to
# 512 are a tie, 32 rows 1.4 times as fast, 64 twice). With packed weights 4 rows are 1.5 times as
# fast as MKL; and a weight that does not stay in the caches is read faster, whatever the rows.
_LEAST: Final = 2**21
_LEAST_PACKED: Final = 2**19
_LARGE_WEIGHT: Final = 2**18
_PACKED_FOR: Final = 32  # rows; for other numbers the same order is as good
# Rows up to which they pay: for hundreds, a second copy costs more than it saves.
_PACKED_ROWS: Final = 64
PACKED_BYTES: Final = 2**29
"""Most memory for packed weights: a model with more in its linear layers keeps none."""
_TOLERANCE: Final = 1e-4  # of the largest value, between the two ways


class FastLinears:
    """Linear layers of a model whose products oneDNN computes, until ``remove``."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        """Take over the linear layers among ``modules``; those whose weights learn stay theirs."""
        self._taken = [module for module in modules if _fits(module)]
        needed = sum(layer.weight.nbytes for layer in self._taken if isinstance(layer, nn.Linear))
        for layer in self._taken:
            assert isinstance(layer, nn.Linear)
            forward = _Forward(layer)
            if needed <= PACKED_BYTES:
                forward.packed = _pack(layer.weight)
            layer.__dict__["forward"] = forward

    def remove(self) -> None:
        """Give the layers back."""
        for module in self._taken:
            module.__dict__.pop("forward", None)
        self._taken = []


def fast_linears(model: nn.Module) -> FastLinears:
    """The linear layers of ``model`` that oneDNN is to compute: all, or none."""
    return FastLinears(model.modules() if _is_wanted() and _works() else ())


def packed_weights(model: nn.Module) -> list[Tensor]:
    """What the linear layers of ``model`` have packed, in the order of its modules."""
    return [forward.packed for forward in _forwards(model) if forward.packed is not None]


@contextmanager
def using_packed(model: nn.Module, weights: Sequence[Tensor]) -> Iterator[None]:
    """Let a recording of ``model`` read its packed weights: it cannot hold, but can be given them.

    ``weights`` are those of ``packed_weights``, as the recording is given them.
    """
    own = [forward for forward in _forwards(model) if forward.packed is not None]
    try:
        for forward, weight in zip(own, weights, strict=True):
            forward.given = weight
        yield
    finally:
        for forward in own:
            forward.given = None


class _Forward:
    """What stands in for a layer's ``forward``; a copy of the layer has one for the copy."""

    def __init__(self, layer: nn.Linear) -> None:
        self._layer = layer
        self.packed: Tensor | None = None  # the weight, in oneDNN's order
        self.given: Tensor | None = None  # the same, while a recording is made

    def __deepcopy__(self, memo: dict[int, Any]) -> _Forward:
        """Without a packed weight: that of the copy may be changed."""
        return _Forward(copy.deepcopy(self._layer, memo))

    def __call__(self, inputs: Tensor) -> Tensor:
        weight, bias = self._layer.weight, self._layer.bias
        recording = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        packed = self.given if recording else self.packed
        fast, least = (weight, _LEAST) if packed is None else (packed, _least_packed(weight))
        if recording:
            bounds = (_PACKED_ROWS, least, _LEAST)
            found: Tensor = _recordable()(inputs, weight, fast, bias, *bounds)
            return found
        chosen = _chosen(inputs, weight, fast, _PACKED_ROWS, least, _LEAST)
        if chosen is None or not _fits(self._layer):
            return linear(inputs, weight, bias)
        if torch.is_grad_enabled() and inputs.requires_grad:
            return _learnable_product(inputs, weight, chosen, bias)
        return _product(inputs, chosen, bias)


def _least_packed(weight: Tensor) -> int:
    return 0 if weight.numel() >= _LARGE_WEIGHT else _LEAST_PACKED


def _forwards(model: nn.Module) -> list[_Forward]:
    found = (module.__dict__.get("forward") for module in model.modules())
    return [forward for forward in found if isinstance(forward, _Forward)]


class _Product(torch.autograd.Function):
    """``inputs @ weight.T + bias``, with a gradient for the inputs alone."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, fast: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(inputs, fast, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        if gradient.numel() * weight.shape[1] < _LEAST:
            return gradient @ weight, None, None, None
        back = weight.t()
        return _learnable_product(gradient, back, back, None), None, None, None


def _learnable_product(inputs: Tensor, weight: Tensor, fast: Tensor, bias: Tensor | None) -> Tensor:
    """As ``_product`` of ``fast``, which is ``weight`` or packed, and gradients go through it."""
    found: Tensor = _Product.apply(inputs, weight, fast, bias)  # type: ignore[no-untyped-call]
    return found


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR)
    return packed


def _chosen(
    inputs: Tensor, weight: Tensor, fast: Tensor, rows: int, least: int, least_of_many: int
) -> Tensor | None:
    """The weight that oneDNN is to read, None where it is no faster: up to so many ``rows`` that is
    ``fast``, from ``least`` multiplications on, and ``weight`` for more."""
    if inputs.numel() > rows * weight.size(1):
        fast, least = weight, least_of_many
    return None if inputs.numel() * weight.size(0) < least else fast


def _either(
    inputs: Tensor,
    weight: Tensor,
    fast: Tensor,
    bias: Tensor | None,
    rows: int,
    least: int,
    least_of_many: int,
) -> Tensor:
    """The product in the fastest way, whatever the size of what comes in."""
    chosen = _chosen(inputs, weight, fast, rows, least, least_of_many)
    if chosen is None:
        return linear(inputs, weight, bias)
    return _product(inputs, chosen, bias)


@lru_cache
def _recordable() -> Callable[..., Tensor]:
    """``_either`` as a recording can hold it: with the choice in it, and oneDNN's arguments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated, as recording is
        compiled: Callable[..., Tensor] = torch.jit.script(_either)
    return compiled


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(…, out) of inputs (…, in) and a weight (out, in) of any strides, or packed."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return found


def _fits(module: nn.Module) -> bool:
    """Whether it is a linear layer of frozen float32 weights on a CPU."""
    return (
        type(module) is nn.Linear
        and not module.weight.requires_grad
        and module.weight.dtype is torch.float32
        and module.weight.device.type == "cpu"
    )


def _is_wanted() -> bool:
    """Whether this is a processor with AVX-512 that MKL does not use it on."""
    info = Path("/proc/cpuinfo")
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not info.is_file():
        return False
    return "AuthenticAMD" in info.read_text(encoding="utf-8")


def _works() -> bool:
    """Whether this PyTorch has the operation, and it computes what `linear` does, both ways."""
    generator = torch.Generator().manual_seed(0)
    inputs, weight, bias = (torch.randn(s, generator=generator) for s in ((3, 48), (32, 48), (32,)))
    try:
        with torch.enable_grad():
            leaf = inputs.requires_grad_()
            expected = linear(leaf, weight, bias)
            packed = _pack(weight)
            found = _learnable_product(leaf, weight, packed, bias)
            pairs = [
                (found, expected),
                (_recordable()(inputs.detach(), weight, packed, bias, 3, 0, 0), expected),
                (_product(inputs.detach(), weight, bias), expected),
                [torch.autograd.grad(y.square().sum(), leaf)[0] for y in (found, expected)],
            ]
    except (AttributeError, RuntimeError, TypeError) as error:
        _log.warning("linear layers are computed the slower way: %s", one_line(error))
        return False
    return all(
        float((one - other).detach().abs().max()) <= _TOLERANCE * float(other.detach().abs().max())
        for one, other in pairs
    )
