"""What has to hold of a write before it counts: on the disk of Redis, at its replicas.

Redis tells of what one connection wrote before, so the questions follow the write in one go.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from server.sessions.errors import StoreUnavailable
from server.sessions.link import Command

CONFIRMATION_WAIT_S = 2.0
"""For the replicas of Redis to have a write, or its disk: well within the time of a command."""


@dataclass(frozen=True, slots=True)
class Confirmation:
    """So many replicas and, with `fsync`, the append-only file; each waited for so long."""

    replicas: int
    fsync: bool
    wait_ms: int

    @property
    def waits(self) -> Sequence[Command]:
        """Commands that follow a write; none where nothing is asked for."""
        waits: list[Command] = []
        if self.fsync:
            # Replicas are asked by WAIT: theirs need not have an append-only file.
            waits.append(("WAITAOF", 1, 0, self.wait_ms))
        if self.replicas:
            waits.append(("WAIT", self.replicas, self.wait_ms))
        return waits

    def check(self, replies: Sequence[Any]) -> None:
        """Read the replies to `waits`. Raises StoreUnavailable where something is missing."""
        missing = []
        if self.fsync and replies[0][0] < 1:
            missing.append(
                "Redis did not sync its append-only file in time, as INNERLOOP_REDIS_FSYNC asks for"
            )
        if self.replicas and replies[-1] < self.replicas:
            missing.append(
                f"{replies[-1]} of the {self.replicas} replicas of Redis that "
                "INNERLOOP_REDIS_REPLICAS asks for confirmed it in time"
            )
        if missing:
            raise StoreUnavailable(
                f"{', and '.join(missing)}, so it may yet be lost; try again in a moment"
            )
