"""A second device that is not there: tensors that say they are on it, and are real on the CPU.

PyTorch's own simulation, ``FakeTensorMode``, has no values, and a build without CUDA ends the
process where a fake CUDA tensor gets a gradient. These have values, so that a whole run goes
through, every ``tolist`` and ``bool`` of it. As on a GPU, an operation that is given tensors of
both devices is refused, except where a GPU takes them: copies from one to the other, single numbers
in element-wise operations, and places to index by. Its name is ``lazy``: of the kinds of device
that PyTorch knows, one whose gradients it computes without a driver.

What it cannot find: kernels that a GPU does not have, and its rounding, speed and memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

AWAY: Final = torch.device("lazy")
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}


class MixedDevicesError(RuntimeError):
    """An operation got tensors of both devices."""


class Away(Tensor):
    """A tensor on ``AWAY``; ``here`` has its values."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Away:
        return Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=AWAY,
        )

    def __init__(self, here: Tensor) -> None:
        self.here = here

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func} on a tensor that outlived its device")

    # What PyTorch asks of a tensor's memory without an operation.

    def tolist(self) -> Any:
        return self.here.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.here.untyped_storage()

    def data_ptr(self) -> int:
        return self.here.data_ptr()


class _Elsewhere(TorchDispatchMode):
    """Computes what is on ``AWAY`` with the values that are here."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        tensors: list[Tensor] = []
        args_here, kwargs_here = _here(args, tensors), _here(kwargs or {}, tensors)
        away = [each for each in tensors if isinstance(each, Away)]
        if 0 < len(away) < len(tensors):
            _check(func, args, tensors)
        goes = isinstance(args[0], Away) if func in COPIES else bool(away)
        device = kwargs_here.get("device")
        if device is not None:
            goes = device.type == AWAY.type
            kwargs_here["device"] = torch.device("cpu") if goes else device
        known = {id(each.here): each for each in away}  # what is changed in place stays itself

        def back(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return type(value)(back(each) for each in value)
            if not isinstance(value, Tensor):
                return value
            return known[id(value)] if id(value) in known else Away(value)

        found = func(*args_here, **kwargs_here)
        return back(found) if goes else found


def _check(func: Any, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    near = [each for each in tensors if not isinstance(each, Away)]
    numbers = torch.Tag.pointwise in func.tags and all(each.ndim == 0 for each in near)
    indexed = func in INDEXING and isinstance(args[0], Away)
    if not (numbers or indexed or func in COPIES):
        shapes = ", ".join(str(tuple(each.shape)) for each in near)
        raise MixedDevicesError(f"{func}: tensors of {shapes} are on the CPU, the others are not")


def _here(value: Any, found: list[Tensor]) -> Any:
    """What an operation was given, with the values that are here; its tensors join ``found``."""
    if isinstance(value, Tensor):
        found.append(value)
        return value.here if isinstance(value, Away) else value
    if isinstance(value, (list, tuple)):  # `torch.utils._pytree` takes several times as long
        return type(value)(_here(each, found) for each in value)
    if isinstance(value, dict):
        return {name: _here(each, found) for name, each in value.items()}
    return value


@contextmanager
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Let there be the other device; every command that is run inside takes it."""
    lifts, autocast = torch._C._only_lift_cpu_tensors(), torch.autocast

    def no_autocast(device_type: str, **options: Any) -> AbstractContextManager[object]:
        return nullcontext() if device_type == AWAY.type else autocast(device_type, **options)

    moved = PreTrainedModel.to

    def tied(model: PreTrainedModel, *where: Any) -> PreTrainedModel:
        """A GPU's parameters stay the same objects when they move; these are others."""
        moved(model, *where)
        model.tie_weights()
        return model

    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor` makes it here, and moves it
    try:
        with monkeypatch.context() as patch, _Elsewhere():
            patch.setattr("meta_training.device.pick_device", lambda name: AWAY)
            patch.setattr(torch, "autocast", no_autocast)
            patch.setattr(PreTrainedModel, "to", tied)
            yield AWAY
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts)
