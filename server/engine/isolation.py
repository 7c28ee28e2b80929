"""One bad item fails alone: the others of its batch and the engine go on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from server.engine.errors import EngineFailed

_log = logging.getLogger(__name__)
T = TypeVar("T")


def failure(what: str, error: Exception) -> EngineFailed:
    """Log what went wrong with its traceback, and say it to the caller in one line.

    The error itself is not handed on: its traceback would keep the tensors of its frames alive.
    """
    _log.error("%s failed", what, exc_info=error)
    return EngineFailed(f"{what} failed: {type(error).__name__}: {error}")


def run_together(
    items: Sequence[T], run: Callable[[Sequence[T]], None], fail: Callable[[T, Exception], None]
) -> None:
    """Run ``items`` in one go; where that raises, one by one, so that only the culprits fail.

    ``run`` must be able to do an item again that it began in vain.
    """
    try:
        run(items)
    except Exception as error:
        if len(items) == 1:
            fail(items[0], error)
            return
        _log.warning("a batch of %d failed, trying each alone: %r", len(items), error)
    else:
        return
    for item in items:
        run_together([item], run, fail)
