"""The servers that live on one Redis, and whether they belong together.

Each leaves its name with a heartbeat. It knows what has to be equal, not what it is: a session that
two replicas answer with different models is derived again at every change between them.
"""

import json
import logging
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from server.sessions import codec, scripts
from server.sessions.errors import SessionStoreError, StoreCorrupt, StoreRefused
from server.sessions.keys import REPLICA_LIFETIME_S
from server.sessions.room import Room

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fit:
    """What all replicas of a deployment have to have in common."""

    model: str  # a name for people
    base: str  # fingerprint of the base's weights
    rule: str  # hash of session_init and inner rule

    @property
    def text(self) -> str:
        """What is compared: two folders may give one model two names."""
        return f"{self.base} {self.rule}"

    def __str__(self) -> str:
        return f"{self.model} (base {self.base[:12]}, rule {self.rule[:12]})"


@dataclass(frozen=True, slots=True)
class _About:
    name: str
    fit: Fit
    settings: Mapping[str, Any]


class Replica:
    """This server's place among those on the same database."""

    def __init__(self, room: Room, fit: Fit, settings: Mapping[str, Any]) -> None:
        name = f"{socket.gethostname()}/{os.getpid()}"
        self._room = room
        self._id = f"{name}/{secrets.token_hex(4)}"
        self._about = _About(name, fit, dict(settings))
        self._told: set[str] = set()
        self.live = 1
        """Servers on the database, this one included, at the last heartbeat."""

    async def join(self, *, allow_mixed: bool) -> None:
        """Take the place, and log what about the others is worth knowing.

        Raises:
            StoreRefused: a live one serves another model, unless `allow_mixed`.
            StoreUnavailable, StoreCorrupt.
        """
        word, last, others = await self._run(strict=not allow_mixed)
        mine = self._about.fit
        if word == b"refused":
            other = next(one for one in others if one.fit.text != mine.text)
            raise StoreRefused(
                f"replica {other.name} serves {other.fit} from this Redis and this one would serve "
                f"{mine}: serve the same model, stop all others first (one that was killed counts "
                f"as gone after {REPLICA_LIFETIME_S:g} s), use another Redis database, or set "
                "INNERLOOP_ALLOW_MIXED=true to have sessions change between both"
            )
        if last is not None and last.fit.text != mine.text:
            logger.warning(
                "this Redis was last served with %s and now is with %s: each session is derived "
                "again from its feedback when it is used next",
                last.fit,
                mine,
            )
        self._look_at(others)

    async def beat(self) -> None:
        """Tell that this server lives. Raises StoreUnavailable, StoreCorrupt."""
        _, _, others = await self._run(strict=False)
        self._look_at(others)
        await self._room.connection.check_clock(self._room.keys)

    async def leave(self) -> None:
        """Give the place up; where Redis is away it runs out by itself."""
        try:
            await self._room.connection.write("HDEL", self._room.keys.replicas, self._id)
        except SessionStoreError as error:
            logger.warning("this replica counts as live for a while: %s", error)

    async def _run(self, *, strict: bool) -> tuple[bytes, _About | None, list[_About]]:
        about = json.dumps(asdict(self._about), sort_keys=True)
        lifetime_ms = int(REPLICA_LIFETIME_S * 1000)
        args: list[str | int] = [self._id, self._about.fit.text, about, lifetime_ms, int(strict)]
        reply = await self._room.connection.run(
            scripts.JOIN, [self._room.keys.replicas], args, confirmed=False
        )
        word, _, last, *others = reply
        return word, _read(last) if last else None, [_read(other) for other in others]

    def _look_at(self, others: list[_About]) -> None:
        """Log, once for each, whoever differs."""
        self.live = 1 + len(others)
        for other in others:
            differing = [
                f"INNERLOOP_{key.upper()} {other.settings[key]!r} (here {value!r})"
                for key, value in self._about.settings.items()
                if key in other.settings and other.settings[key] != value
            ]
            if other.fit.text != self._about.fit.text:
                differing.insert(0, f"model {other.fit} (here {self._about.fit})")
            if differing and other.name not in self._told:
                logger.warning(
                    "replica %s on the same Redis differs: %s", other.name, "; ".join(differing)
                )
                self._told.add(other.name)


def _read(text: bytes) -> _About:
    fields = codec.load(text)
    try:
        fit = fields["fit"]
        return _About(
            fields["name"], Fit(fit["model"], fit["base"], fit["rule"]), fields["settings"]
        )
    except (KeyError, TypeError) as error:
        raise StoreCorrupt(
            f"a replica in Redis is not as this server writes it: {error!r}"
        ) from error
