"""Who may come in: stored keys, session tokens, rates, and the log of what operators did.

It knows nothing of HTTP, nor of the keys of the environment. Keys and tokens are kept as SHA-256:
they are 256 random bits, which nobody finds by trying, so a slow hash would only slow requests.
"""

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from server.sessions import access_scripts as scripts
from server.sessions import codec
from server.sessions.access_types import (
    SCOPES,
    ApiKey,
    AuditEntry,
    AuditPage,
    Charge,
    KeyPage,
    Role,
    Scope,
    SessionToken,
)
from server.sessions.connection import clock_of, seconds
from server.sessions.errors import AccessConflict, InvalidName, KeyNotFound
from server.sessions.keys import AUDIT_MAX, TOKENS_MAX, quoted, reference, unquoted
from server.sessions.link import Command
from server.sessions.room import Room

TOKEN_PREFIX = "ilt_"
_KEY = re.compile(r"il_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_TOKEN = re.compile(TOKEN_PREFIX + r"([A-Za-z0-9_-]{1,2000})\.[A-Za-z0-9_-]{43}")
_KEY_ID = re.compile(r"[0-9a-f]{12}")


def new_key_id() -> str:
    """Draw the id of a key: 12 hexadecimal characters, no secret."""
    return secrets.token_hex(6)


class Access:
    """Keys, tokens, rates and the audit log of one deployment. Raises StoreUnavailable."""

    def __init__(self, room: Room) -> None:
        self._connection = room.connection
        self._keys = room.keys

    # Keys

    async def keyed(self) -> bool:
        """Whether a key was ever stored here. It stays so, even when all are revoked."""
        return bool(await self._connection.read("EXISTS", self._keys.keyed))

    async def make_key(
        self,
        key_id: str,
        tenant: str,
        role: Role,
        *,
        name: str = "",
        lifetime_s: int | None = None,
        alone: bool = False,
    ) -> tuple[ApiKey, str]:
        """Store a new key of a `new_key_id`; returns it with its text, which nobody can read again.

        With ``alone`` no operator's key is known from elsewhere. Raises AccessConflict where no
        operator could come in afterwards, or where there are too many.
        """
        text = f"il_{key_id}_{secrets.token_urlsafe(32)}"
        word, *rest = await self._connection.run(
            scripts.MAKE_KEY,
            [self._keys.api_keys, self._keys.keyed],
            [
                *(key_id, tenant, role, name, _digest(text), text[-4:]),
                "" if lifetime_s is None else lifetime_s * 1000,
                int(alone),
            ],
        )
        if word == b"operator":
            raise AccessConflict(
                "the first key of a server without keys in its environment has to be an "
                "operator's, or nobody could make or revoke keys: make one with role operator"
            )
        if word == b"full":
            raise AccessConflict("there are too many keys: revoke those that nobody uses")
        return _api_key(rest[0]), text

    async def keys(self, *, offset: int = 0, limit: int = 50) -> KeyPage:
        """Read a page of the stored keys, newest first."""
        texts = await self._connection.read("HVALS", self._keys.api_keys)
        found = sorted(map(_api_key, texts), key=lambda key: (-key.created_at, key.id))
        return KeyPage(len(found), tuple(found[offset : offset + limit]))

    async def revoke_key(self, key_id: str, *, alone: bool = False) -> None:
        """Delete a key: it and the tokens made with it open nothing from now on.

        Raises KeyNotFound, and AccessConflict where ``alone`` and it is the last of an operator.
        """
        word, *_ = await self._connection.run(
            scripts.REVOKE_KEY, [self._keys.api_keys], [key_id, int(alone)]
        )
        if word == b"absent":
            raise KeyNotFound(f"there is no stored key {key_id!r}: GET /admin/keys lists them")
        if word == b"last":
            raise AccessConflict(
                f"{key_id} is the last key of an operator, and the environment has none: make "
                "another one first, or start the server with INNERLOOP_OPERATOR_KEYS"
            )

    async def key(self, text: str) -> ApiKey | None:
        """Whose key this is; None for one that is unknown, revoked or expired."""
        named = _KEY.fullmatch(text)
        if named is None:
            return None
        clock, record = await self._connection.read_batch(
            [clock_of(self._keys.api_keys), ("HGET", self._keys.api_keys, named[1])], scattered=True
        )
        if record is None or not _is_alive(record, clock):
            return None
        known = str(codec.load(record)["digest"])
        return _api_key(record) if hmac.compare_digest(known, _digest(text)) else None

    # Session tokens

    async def make_token(
        self,
        tenant: str,
        session_id: str,
        maker: str,
        scopes: Sequence[Scope],
        lifetime_s: int,
        proof: Callable[[str], str],
    ) -> tuple[str, float]:
        """Make a token that opens one session; returns its text and when it expires.

        It lives no longer than its session and the stored key ``maker``. It names both, and the
        tenant, so that one round trip finds everything. What ``proof`` says about its text is kept
        with it. Raises AccessConflict where the session has too many.
        """
        named = f"{reference(tenant, session_id)}/{quoted(maker)}".encode()
        named_text = base64.urlsafe_b64encode(named).decode().rstrip("=")
        text = f"{TOKEN_PREFIX}{named_text}.{secrets.token_urlsafe(32)}"
        word, *rest = await self._connection.run(
            scripts.MAKE_TOKEN,
            [self._keys.session(tenant, session_id).tokens],
            [_digest(text), lifetime_s * 1000, maker, " ".join(scopes), proof(text)],
        )
        if word == b"full":
            raise AccessConflict(
                f"session {session_id!r} has {TOKENS_MAX} living tokens: use one for as long as it "
                "lives, or make them live shorter"
            )
        return text, int(rest[0]) / 1000

    async def token(self, text: str) -> SessionToken | None:
        """What a token opens; None where it is unknown, has expired, or went with its session or
        with the stored key that made it."""
        named = _named(text)
        if named is None:
            return None
        tenant, session_id, maker = named
        tokens = self._keys.session(tenant, session_id).tokens
        commands: list[Command] = [clock_of(tokens), ("HGET", tokens, _digest(text))]
        stored = _KEY_ID.fullmatch(maker) is not None
        if stored:
            commands.append(("HGET", self._keys.api_keys, maker))
        clock, record, *makers = await self._connection.read_batch(commands, scattered=True)
        if record is None or not _is_alive(record, clock):
            return None
        if stored and (makers[0] is None or not _is_alive(makers[0], clock)):
            return None
        fields = codec.load(record)
        scopes = tuple(scope for scope in SCOPES if scope in str(fields["scopes"]).split())
        proof, expires_at = fields["proof"], fields["expires_ms"] / 1000
        return SessionToken(tenant, session_id, maker, proof, scopes, expires_at)

    # Rates

    async def take(self, tenant: str, charges: Sequence[Charge]) -> tuple[Charge, float] | None:
        """Take from all buckets, or from none: then the one that has too few, and after how many
        seconds it has enough. All replicas draw from the same ones."""
        if not charges:
            return None
        arguments = [
            number
            for charge in charges
            for number in (repr(1e6 / charge.per_s), charge.burst, charge.amount)
        ]
        which, wait_us = await self._connection.run(
            scripts.TAKE, self._buckets(tenant, charges), arguments, confirmed=False
        )
        return (charges[which - 1], wait_us / 1e6) if which else None

    async def spend(self, tenant: str, charges: Sequence[Charge]) -> None:
        """Charge all buckets for what was used already; they may owe something afterwards."""
        if not charges:
            return
        arguments = [n for charge in charges for n in (repr(1e6 / charge.per_s), charge.amount)]
        await self._connection.run(
            scripts.SPEND, self._buckets(tenant, charges), arguments, confirmed=False
        )

    async def left(
        self, tenant: str, charges: Sequence[Charge]
    ) -> tuple[Charge, float, int] | None:
        """The first bucket that has nothing left, after how many seconds it has, and how much was
        spent of it that did not come back yet; None where all have."""
        if not charges:
            return None
        arguments = [n for charge in charges for n in (repr(1e6 / charge.per_s), charge.burst)]
        keys = self._buckets(tenant, charges)
        which, wait_us, spent = await self._connection.read(
            "EVAL", scripts.LEFT, len(keys), *keys, *arguments
        )
        return (charges[which - 1], wait_us / 1e6, spent) if which else None

    def _buckets(self, tenant: str, charges: Sequence[Charge]) -> list[str]:
        return [self._keys.rate(tenant, charge.bucket, charge.session_id) for charge in charges]

    # What operators did

    async def record(
        self,
        who: str,
        action: str,
        outcome: str,
        tenant: str,
        session_id: str | None,
        fields: Mapping[str, str],
    ) -> None:
        """Append to the audit log, which keeps the newest entries."""
        entry = {"who": who, "action": action, "outcome": outcome, "tenant": tenant}
        if session_id is not None:
            entry["session_id"] = session_id
        entry["fields"] = codec.dump(fields)
        texts = [part for pair in entry.items() for part in pair]
        await self._connection.write(
            "XADD", self._keys.audit, "MAXLEN", "~", AUDIT_MAX, "*", *texts
        )

    async def audit(self, *, offset: int = 0, limit: int = 50) -> AuditPage:
        """Read a page of the audit log, newest first."""
        total, found = await self._connection.read_batch(
            [
                ("XLEN", self._keys.audit),
                ("XREVRANGE", self._keys.audit, "+", "-", "COUNT", offset + limit),
            ],
            scattered=True,
        )
        return AuditPage(total, tuple(_entry(*one) for one in found[offset:]))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_alive(record: bytes, clock: Sequence[bytes]) -> bool:
    expires_ms = codec.load(record).get("expires_ms")
    return expires_ms is None or int(expires_ms) > seconds(clock) * 1000


def _named(text: str) -> tuple[str, str, str] | None:
    """Tenant, session and maker that a token names; whether it may is not said by that."""
    shape = _TOKEN.fullmatch(text)
    if shape is None:
        return None
    try:
        padded = shape[1] + "=" * (-len(shape[1]) % 4)
        parts = base64.urlsafe_b64decode(padded).decode("ascii").split("/")
        tenant, session_id, maker = (unquoted(part) for part in parts)
        reference(tenant, session_id)
    except (ValueError, InvalidName):
        return None
    return tenant, session_id, maker


def _api_key(record: bytes) -> ApiKey:
    fields = codec.load(record)
    expires_ms = fields.get("expires_ms")
    return ApiKey(
        id=fields["id"],
        tenant=fields["tenant"],
        role=cast(Role, fields["role"]),
        name=fields["name"],
        last4=fields["last4"],
        created_at=fields["created_ms"] / 1000,
        expires_at=None if expires_ms is None else expires_ms / 1000,
    )


def _entry(entry_id: bytes, fields: Mapping[bytes, bytes]) -> AuditEntry:
    event = codec.event(entry_id, {b"type": b"audit", **fields})
    texts = event.fields
    return AuditEntry(
        id=event.id,
        at=event.at,
        who=texts["who"],
        action=texts["action"],
        outcome=texts["outcome"],
        tenant=texts["tenant"],
        session_id=texts.get("session_id"),
        fields=codec.load(texts["fields"]),
    )
