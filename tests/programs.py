"""Programs that a machine may have."""

import os
import shutil
import sys
from pathlib import Path

import pytest


def tool(name: str) -> str:
    """A program on PATH or beside this Python; the test is skipped where there is none."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(name, path=places)
    if found is None:
        pytest.skip(f"no {name}")
    return found
