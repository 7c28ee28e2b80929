"""Errors of the package's long commands as exit codes. It imports PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Callable

from adapters.config import AdapterError
from meta_training.arguments import refused
from meta_training.checkpoint import CheckpointError
from meta_training.recipe import RecipeError
from meta_training.tasks.sources import DataError

BAD_INPUT: tuple[type[Exception], ...] = (
    RecipeError,
    DataError,
    CheckpointError,
    AdapterError,
)


def exit_code(command: str, work: Callable[[], None], *wrong: type[Exception]) -> int:
    """Do the work of a resumable command and tell in one line what stopped it.

    Args:
        wrong: errors of bad input beside those of ``BAD_INPUT``.

    Returns:
        0 done, 1 a file could not be written, 2 bad input, 130 stopped by Ctrl-C with all saved.
    """
    try:
        work()
    except BAD_INPUT + wrong as error:
        return refused(command, error)
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"innerloop {command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
