"""All Redis keys, lifetimes and bounds, with their reasons.

Everything of one session carries the hash tag `{tenant/session}`, so that a Cluster keeps it on one
node and one script may write it. The indexes cannot share a node with every session; they are
allowed to name too much (a session that is gone), never too little, and readers check.

    <ns>:schema                     string  schema of this database
    <ns>:deployment                 string  drawn once; names this database
    <ns>:replicas                   hash    replica -> what it serves, and its last heartbeat
    <ns>:tenants                    set     quoted tenants
    <ns>:pending                    zset    quoted tenant/session -> named_ms: maybe unfinished
    <ns>:unswept                    zset    quoted tenant -> named_ms: its house forgot something
    <ns>:placed                     zset    quoted tenant -> when its indexes were last compared, ms
    <ns>:sessions:{tenant}          set     quoted sessions
    <ns>:updated:{tenant}           zset    quoted session -> about when it last changed, ms
    <ns>:created:{tenant}           zset    quoted session -> about when it was made, ms
    <ns>:{access}:keys              hash    key id -> record (JSON, with the key's SHA-256)
    <ns>:{access}:keyed             string  there once a key was stored: never served open again
    <ns>:audit                      stream  what operators did
    <ns>:rate:{tenant}:…            string  when a bucket of requests or feedback is full again
    <ns>:{tenant/session}:meta      hash    pointer, counters, incarnation
    <ns>:{tenant/session}:items     hash    item id -> state (JSON that scripts read and write)
    <ns>:{tenant/session}:payloads  hash    item id -> payload (JSON that scripts never parse)
    <ns>:{tenant/session}:prompts   hash    prompt key -> item ids, for superseding
    <ns>:{tenant/session}:versions  hash    number -> envelope (JSON) around the version record
    <ns>:{tenant/session}:idempotency      hash  key -> request hash, item ids, settled answer
    <ns>:{tenant/session}:idempotency_age  zset  key -> created_ms, as hash fields do not expire
    <ns>:{tenant/session}:events    stream  the log
    <ns>:{tenant/session}:completions      zset  completion id -> end of its life, for deletion
    <ns>:{tenant/session}:tokens    hash    token's SHA-256 -> record (JSON); gone with the session
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

REPLICA_BEAT_S = 10.0
REPLICA_LIFETIME_S = 35.0
"""Three heartbeats may be lost before a replica counts as dead."""

INDEX_GRACE_S = 600
"""An index entry that nothing stands behind may belong to a write under way; older ones do not."""

PLACED_S = 3600
"""Between comparisons of a tenant's indexes: an older server on the same Redis keeps but the one by
name. Where their lengths differ nobody waits for that."""

HISTORY_VERSIONS = 16
"""Enough to roll back past a bad day; every version costs a whole adapter."""

HISTORY_SNAPSHOTS = 4
"""People go back a step or two; an adapter that is gone back to further is derived again."""

EVENTS_MAX = 10_000
"""The log is for people; without a bound a busy session's would outgrow its adapter."""

AUDIT_MAX = 10_000
"""As many as of a session's log; who must keep more copies them elsewhere as they come."""

API_KEYS_MAX = 10_000
"""All of them are read for a page of the list."""

TOKENS_MAX = 1_000
"""Living ones of one session; a page needs one, so more are a client that draws one a request."""


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
            self.idempotency,
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
    def idempotency(self) -> str:
        """Hash: idempotency key -> record."""
        return self.root + "idempotency"

    @property
    def events(self) -> str:
        """Stream: the log."""
        return self.root + "events"

    @property
    def completions(self) -> str:
        """Zset: completion ids."""
        return self.root + "completions"

    @property
    def tokens(self) -> str:
        """Hash: token digest -> record."""
        return self.root + "tokens"

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
    def replicas(self) -> str:
        """Hash: the servers that live on this database."""
        return f"{self.namespace}:replicas"

    @property
    def tenants(self) -> str:
        """Set: quoted tenants."""
        return f"{self.namespace}:tenants"

    @property
    def pending(self) -> str:
        """Zset: references of sessions that may have unfinished work."""
        return f"{self.namespace}:pending"

    @property
    def unswept(self) -> str:
        """Zset: tenants whose sessions may contain what their house has forgotten."""
        return f"{self.namespace}:unswept"

    @property
    def placed(self) -> str:
        """Zset: when the indexes of tenants were last compared."""
        return f"{self.namespace}:placed"

    @property
    def api_keys(self) -> str:
        """Hash: key id -> record."""
        return f"{self.namespace}:{{access}}:keys"

    @property
    def keyed(self) -> str:
        """String: there once a key was stored, whatever became of it."""
        return f"{self.namespace}:{{access}}:keyed"

    @property
    def audit(self) -> str:
        """Stream: what operators did."""
        return f"{self.namespace}:audit"

    def rate(self, tenant: str, bucket: str, session_id: str | None = None) -> str:
        """Return the key of a bucket; all of a tenant's are on one node, for one script."""
        rest = "" if session_id is None else f":{quoted(session_id)}"
        return f"{self.namespace}:rate:{{{quoted(tenant)}}}:{bucket}{rest}"

    def index(self, tenant: str) -> str:
        """Return the key of a tenant's set of sessions."""
        return f"{self.namespace}:sessions:{{{quoted(tenant)}}}"

    def indexes(self, tenant: str) -> list[str]:
        """Return the keys of a tenant's indexes, all of one node: by name, by change, by making."""
        return [self.index(tenant), self.updated(tenant), self.created(tenant)]

    def updated(self, tenant: str) -> str:
        """Return the key of a tenant's sessions by when they last changed."""
        return f"{self.namespace}:updated:{{{quoted(tenant)}}}"

    def created(self, tenant: str) -> str:
        """Return the key of a tenant's sessions by when they were made."""
        return f"{self.namespace}:created:{{{quoted(tenant)}}}"

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
