"""A Redis that cannot answer: what callers are told, and what the log is.

Addresses are the operator's affair: redis-py's own words go to the log only, and there without the
commands that it quotes, which hold keys and what people wrote.
"""

import logging
import re
import time
from collections.abc import Iterable
from typing import Final

from redis import exceptions as redis_errors

logger = logging.getLogger(__name__)

REPEAT_S: Final = 60.0
"""An outage is told again after so long: every request meets it, and one line is enough."""

AWAY: Final = "Redis cannot answer now; try again in a moment"
FULL: Final = (
    "the server's storage (Redis) is full, and takes nothing new until its operator makes room; "
    "the server's log says how"
)
_QUOTED: Final = re.compile(r"Command # \d+ \((\S*).*?\) of pipeline caused error: ", re.DOTALL)
# At the start of an error, after the "-" that a script's error puts before it, or in what redis-py
# says about a pipeline.
_OOM: Final = re.compile(r"(?:^|-|caused error: \(?['\"]?)OOM\b")
_ROOM: Final = (
    "Redis is full (%s) and takes nothing new: raise its maxmemory, or delete sessions "
    "(INNERLOOP_SESSION_LIFETIME_S does, once they are unused for so long)"
)


def told_to_callers(error: BaseException) -> str:
    """What anybody may read about an error of redis-py."""
    return FULL if _is_full(error) else AWAY


class OutageLog:
    """The lines about one Redis; a password is in none of them."""

    def __init__(self, passwords: Iterable[str]) -> None:
        """``passwords`` of its address are struck out: what answers may repeat what it was sent."""
        self._passwords = tuple(passwords)
        self._told_at_s: dict[bool, float] = {}

    def tell(self, error: BaseException) -> None:
        """Log an error of redis-py with its details, unless its like was told a moment ago."""
        full, now_s = _is_full(error), time.monotonic()
        if now_s - self._told_at_s.get(full, -REPEAT_S) < REPEAT_S:
            return
        self._told_at_s[full] = now_s
        details = without(self._passwords, f"{type(error).__name__}: {without_command(error)}")
        if full:
            logger.error(_ROOM, details)
        else:
            logger.warning("Redis cannot answer (%s)", details)


def without_command(error: BaseException) -> str:
    """What redis-py says, with the name alone of a command that it quotes."""
    return _QUOTED.sub(r"\1: ", str(error))


def without(passwords: Iterable[str], text: str) -> str:
    """A text with the passwords struck out."""
    for password in passwords:
        text = text.replace(password, "***")
    return text


def _is_full(error: BaseException) -> bool:
    """Whether its memory is: said by redis-py's class, or by a script's or a pipeline's error."""
    return isinstance(error, redis_errors.OutOfMemoryError) or bool(_OOM.search(str(error)))
