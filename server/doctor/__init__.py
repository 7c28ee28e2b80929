"""What may be wrong on this machine: one finding for each thing looked at, and how to mend it.

It looks and changes nothing. It knows settings, files and the rooms' own checks, and asks a running
server over HTTP only.
"""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``mend`` says what to do, where there is something to do."""

    check: str
    level: Level
    detail: str
    mend: str = ""
