"""All Redis keys, lifetimes and bounds, with their reasons.

Everything of one session carries the hash tag `{tenant/session}`, so that a Cluster keeps it on one
node and one script may write it. The indexes cannot share a node with every session; they are
allowed to name too much (a session that is gone), never too little, and readers check.

    <ns>:schema                     string  schema of this database
    <ns>:deployment                 string  drawn once; names this database
    <ns>:tenants                    set     quoted tenants
    <ns>:pending                    zset    quoted tenant/session -> named_ms: maybe unfinished
    <ns>:sessions:{tenant}          set     quoted sessions
    <ns>:{tenant/session}:meta      hash    pointer, counters, incarnation
    <ns>:{tenant/session}:items     hash    item id -> state (JSON that scripts read and write)
    <ns>:{tenant/session}:payloads  hash    item id -> payload (JSON that scripts never parse)
    <ns>:{tenant/session}:prompts   hash    prompt key -> item ids, for superseding
    <ns>:{tenant/session}:versions  hash    number -> envelope (JSON) around the version record
    <ns>:{tenant/session}:idempotency      hash  key -> request hash, item ids, settled answer
    <ns>:{tenant/session}:idempotency_age  zset  key -> created_ms, as hash fields do not expire
    <ns>:{tenant/session}:events    stream  the log
    <ns>:{tenant/session}:completions      zset  completion id -> end of its life, for deletion
    <ns>:{tenant/session}:snapshot:<id>    string  a version's or candidate's bytes
    <ns>:completion:{tenant/completion}    string  JSON; found without its session
"""

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from server.sessions.errors import InvalidName

SCHEMA = 1
DEFAULT_NAMESPACE = "innerloop"

CANDIDATE_LIFETIME_S = 600
"""Bytes are written just before they are promoted; after a crash in between nobody names them."""

IDEMPOTENCY_LIFETIME_S = 24 * 3600
"""A client that repeats a request after a day means a new one."""

COMPLETION_LIFETIME_S = 24 * 3600
"""People rate an answer while they still see it; the text is not ours to keep for longer."""

INDEX_GRACE_S = 600
"""An index entry that nothing stands behind may belong to a write under way; older ones do not."""

HISTORY_VERSIONS = 16
"""Enough to roll back past a bad day; every version costs a whole adapter."""

EVENTS_MAX = 10_000
"""The log is for people; without a bound a busy session's would outgrow its adapter."""


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """The keys of one session."""

    root: str  # "<ns>:{tenant/session}:"

    def scripted(self) -> list[str]:
        """Return KEYS[1] to KEYS[8] of every script; `prelude` names them alike."""
        return [
            self.meta,
            self.items,
            self.payloads,
            self.prompts,
            self.versions,
            self.root + "idempotency",
            self.root + "idempotency_age",
            self.events,
        ]

    @property
    def meta(self) -> str:
        """Hash: pointer, counters, incarnation."""
        return self.root + "meta"

    @property
    def items(self) -> str:
        """Hash: item id -> state."""
        return self.root + "items"

    @property
    def payloads(self) -> str:
        """Hash: item id -> payload."""
        return self.root + "payloads"

    @property
    def prompts(self) -> str:
        """Hash: prompt key -> item ids."""
        return self.root + "prompts"

    @property
    def versions(self) -> str:
        """Hash: number -> envelope."""
        return self.root + "versions"

    @property
    def events(self) -> str:
        """Stream: the log."""
        return self.root + "events"

    @property
    def completions(self) -> str:
        """Zset: completion ids."""
        return self.root + "completions"

    def snapshot(self, snapshot_id: str) -> str:
        """Return the key of a version's or candidate's bytes."""
        return f"{self.root}snapshot:{snapshot_id}"


@dataclass(frozen=True, slots=True)
class Keys:
    """All keys under one namespace, so that two deployments can share one Redis."""

    namespace: str = DEFAULT_NAMESPACE

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", self.namespace):
            raise InvalidName(
                f"Redis namespace {self.namespace!r}: use 1 to 64 of letters, digits, '_', '.', '-'"
            )

    @property
    def schema(self) -> str:
        """String: the schema of the database."""
        return f"{self.namespace}:schema"

    @property
    def deployment(self) -> str:
        """String: the name of the database."""
        return f"{self.namespace}:deployment"

    @property
    def tenants(self) -> str:
        """Set: quoted tenants."""
        return f"{self.namespace}:tenants"

    @property
    def pending(self) -> str:
        """Zset: references of sessions that may have unfinished work."""
        return f"{self.namespace}:pending"

    def index(self, tenant: str) -> str:
        """Return the key of a tenant's set of sessions."""
        return f"{self.namespace}:sessions:{{{quoted(tenant)}}}"

    def session(self, tenant: str, session_id: str) -> SessionKeys:
        """Return the keys of one session. Raises InvalidName."""
        return SessionKeys(f"{self.namespace}:{{{reference(tenant, session_id)}}}:")

    def completion(self, tenant: str, completion_id: str) -> str:
        """Return the key of one completion. Raises InvalidName."""
        return f"{self.namespace}:completion:{{{reference(tenant, completion_id)}}}"


def quoted(name: str) -> str:
    """Write a name so that it has no '/', '{' or '}' and only ASCII. Raises InvalidName."""
    if not name:
        raise InvalidName("a tenant, session or completion name must not be empty")
    try:
        return quote(name, safe="")
    except UnicodeEncodeError as error:
        raise InvalidName(f"{name!r} is not valid Unicode text") from error


def unquoted(text: str) -> str:
    """Undo `quoted`."""
    return unquote(text)


def reference(tenant: str, session_id: str) -> str:
    """Name a session across tenants: two different pairs never give the same text."""
    return f"{quoted(tenant)}/{quoted(session_id)}"


def parse_reference(text: str) -> tuple[str, str]:
    """Undo `reference`."""
    tenant, _, session_id = text.partition("/")
    return unquoted(tenant), unquoted(session_id)
