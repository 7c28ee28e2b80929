"""Who may come in, as stored: keys, session tokens, and what operators did."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Role = Literal["client", "operator"]
Scope = Literal["generate", "teach", "read", "delete"]
SCOPES: tuple[Scope, ...] = ("generate", "teach", "read", "delete")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A stored key, without its text. Times are Unix seconds by the clock of Redis."""

    id: str
    tenant: str
    role: Role
    name: str
    last4: str
    created_at: float
    expires_at: float | None  # None: it does not


@dataclass(frozen=True, slots=True)
class KeyPage:
    """A page of keys, newest first, and how many there are."""

    total: int
    keys: tuple[ApiKey, ...]


@dataclass(frozen=True, slots=True)
class SessionToken:
    """What a session token opens. ``maker`` is a stored key's id, or another name of a caller; the
    ``proof`` is for whoever knows those others."""

    tenant: str
    session_id: str
    maker: str
    proof: str
    scopes: tuple[Scope, ...]
    expires_at: float


@dataclass(frozen=True, slots=True)
class Charge:
    """What a request takes out of a bucket that fills at ``per_s`` and holds ``burst``."""

    bucket: str
    session_id: str | None  # None: the tenant's
    per_s: float
    burst: int
    amount: int


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One thing that an operator did, or tried to. ``outcome`` is "begun", or why it failed."""

    id: str
    at: float
    who: str
    action: str
    outcome: str
    tenant: str
    session_id: str | None
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AuditPage:
    """A page of the audit log, newest first, and how many entries are kept."""

    total: int
    entries: tuple[AuditEntry, ...]
