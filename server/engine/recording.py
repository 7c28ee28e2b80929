"""Passes of a model recorded once and run again without Python, for any rows and columns.

On a CPU half of a small model's pass is Python and not arithmetic. ``torch.jit`` is deprecated and
has no successor that runs a recording without a compiler on the user's machine; where it is
missing, or does not fit an architecture, the model's own code runs. Knows transformers' models;
knows nothing about what a pass is for.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from adapters.base_model import PROBE_TOLERANCE
from adapters.config import one_line
from server.engine.base import Base
from server.engine.forward import changes_with_length

T = TypeVar("T")
RECORDED: Final = (2, 9)
"""Rows and columns of a recording, which is optimised in its first two runs."""
CHECKED: Final = ((3, 14), (1, 6))
"""Those of these two, in which it is checked."""
_log = logging.getLogger(__name__)


class RecordingError(RuntimeError):
    """A recording that cannot stand for the model's own code."""


def recorded_or_none(make: Callable[[], T], what: str) -> T | None:
    """What ``make`` makes; None, and a word in the log about ``what``, where it does not work."""
    try:
        return make()
    except Exception as error:  # tracing runs code of any architecture
        _log.warning("%s and so slower: %s", what, one_line(error))
        return None


def record(base: Base, step: Callable[..., Any], example: tuple[Any, ...]) -> Callable[..., Any]:
    """A recording of ``step``, with all sizes in ``example`` open.

    Raises:
        RecordingError: the model's passes cannot be recorded.
        Exception: what an architecture's code raises when it is traced.
    """
    if changes_with_length(base):
        raise RecordingError("its position embeddings change with how long a sequence became")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that it is deprecated, and what the checks look at
        recording: Callable[..., Any] = torch.jit.trace(step, example, check_trace=False)
    return recording


def check(base: Base, found: Tensor, expected: Tensor) -> None:
    """Refuse a recording that does not give what the model's own code gives.

    Raises:
        RecordingError: it does not.
    """
    error = float((found - expected).abs().max())
    if not error <= PROBE_TOLERANCE[base.dtype] * max(1.0, float(expected.abs().max())):
        raise RecordingError(f"{type(base.model).__name__} recorded is off by {error:.2g}")
