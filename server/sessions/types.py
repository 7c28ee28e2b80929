"""What is stored, as frozen values.

These are the stored types: the wire types of the HTTP contract live in the api room and the
tensors in `adapters`, because a field that a client sees, a field that a replica wrote last year
and a field the device needs change for different reasons. Times called `…_at` are Unix seconds by
the clock of Redis, so that replicas with different clocks agree on them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

IMPORTED = "import"
"""The start of a version that was not derived here: without its bytes nobody can have it again."""

HOUSE = "~house"
"""The session that is a tenant's house; no caller can name it, its first character being none of a
session id's."""

Kind = Literal["demonstration", "correction", "preference", "rating"]
Status = Literal["pending", "applied", "refused", "superseded", "forgotten"]
SessionSort = Literal["updated_at", "created_at", "session_id", "version", "items"]

STRENGTHS: Mapping[Kind, int] = {"demonstration": 3, "correction": 3, "preference": 2, "rating": 1}
"""Who supersedes whom about the same prompt: a later item of equal or greater strength, but a
dislike only other ratings of the same answer."""

LIVE: tuple[Status, ...] = ("pending", "applied")
"""The items that derive."""


def called(session_id: str) -> str:
    """Name a session, or the house, to people."""
    return "the house" if session_id == HOUSE else f"session {session_id!r}"


def prompt_key(messages: Sequence[Mapping[str, Any]]) -> str:
    """Name what an item is about: items with equal messages before the reply share the key.

    Returns 64 hexadecimal characters. Raises TypeError for messages that are not JSON.
    """
    text = json.dumps([dict(message) for message in messages], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def rated(completion: str, liked: bool) -> str:
    """Name what a rating says: its sign, and a key of the answer, 64 hexadecimal characters."""
    return ("+" if liked else "-") + hashlib.sha256(completion.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class NewItem:
    """Feedback on its way into the log. An empty `prompt_key` is about no prompt in particular."""

    kind: Kind
    payload: Mapping[str, Any]  # JSON: messages, completion, activation index, token ids ...
    prompt_key: str = ""
    rated: str = ""  # as `rated` makes it; of a rating


@dataclass(frozen=True, slots=True)
class Item:
    """One feedback item of the log. A forgotten item's payload and keys are erased."""

    id: int  # counts from 1 in its session
    kind: Kind
    status: Status
    payload: Mapping[str, Any]
    prompt_key: str
    created_at: float
    reason: str | None = None  # why it was refused or superseded
    version: int | None = None  # the first version that it was applied in
    superseded_by: int | None = None  # item id
    idempotency_key: str | None = None  # of the request that brought it
    rated: str = ""


@dataclass(frozen=True, slots=True)
class Pointer:
    """Where a session stands: what a reader needs before it generates.

    Cache adapters by (`incarnation`, `version`), never by session and version alone: a session
    that was deleted and made again counts its versions from 1 again.
    """

    tenant: str
    session_id: str
    exists: bool = False
    incarnation: str = ""  # drawn when the session is made, never used again
    version: int = 0  # 0 is untaught
    base_fingerprint: str = ""  # of the base that the active version was derived under
    created_at: float = 0.0
    updated_at: float = 0.0
    items: int = 0  # ever appended, whatever became of them
    pending: int = 0
    applied: int = 0
    unpurged: bool = False  # the active version still contains a forgotten item
    pinned: bool = False  # feedback is kept, and waits until it is not
    used_at: float = 0.0  # the last answer that was kept for feedback, or change
    imported: bool = False  # the active version is an import: served as it is, never taught
    house: str = ""  # `name` of the house's version that the active one was derived from, if any
    pinned_house: str = ""  # `name` of the house's version that was in force when it was pinned
    alone: bool = False  # it builds upon no house
    forgotten: int = 0  # items, ever

    @property
    def name(self) -> str:
        """The version in force as those that are derived from it name it; empty for untaught."""
        return f"{self.incarnation}.{self.version}" if self.version else ""

    @property
    def unfinished(self) -> bool:
        """Whether something waits to be derived."""
        return self.pending > 0 or self.unpurged


@dataclass(frozen=True, slots=True)
class Derivation:
    """What an adapter is derived from, read in one piece: pass the pointer on to `promote`."""

    pointer: Pointer
    items: tuple[Item, ...]  # pending and applied, in the order of their ids


@dataclass(frozen=True, slots=True)
class AppendResult:
    """What became of an append. `answer` is there when a repeated request was settled already."""

    item_ids: tuple[int, ...]
    incarnation: str  # of the session whose items they are
    repeated: bool = False
    answer: Mapping[str, Any] | None = None  # with `adapter_version` set to the settled version


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """What a version came from. `item_ids` become applied when the version is promoted."""

    start: str  # "session_init", "house", or IMPORTED
    item_ids: tuple[int, ...]
    rule_hash: str
    base_fingerprint: str
    guard: Mapping[str, Any] = field(default_factory=dict)  # its verdict and scale, JSON
    steps: int = 0
    loss_before: float | None = None
    loss_after: float | None = None
    update_norm: float | None = None
    house: str = ""  # the `Pointer.name` of the house that it was derived from
    house_items: tuple[int, ...] = ()  # of that house, which it therefore contains


@dataclass(frozen=True, slots=True)
class Version:
    """An immutable version of a session's adapter, without its bytes."""

    number: int
    created_at: float
    snapshot_bytes: int  # 0 where a newer version let go of them
    snapshot_id: str  # the unique name its bytes were written under
    record: VersionRecord


@dataclass(frozen=True, slots=True)
class ForgetResult:
    """What forgetting an item touched. Versions that contained it are deleted, but the active one
    only when its successor is promoted."""

    item_id: int
    restored: tuple[int, ...]  # items that the forgotten one had superseded
    versions: tuple[int, ...]  # versions that contained it
    active: bool  # whether the active version is one of them
    derive_again: bool  # whether the caller has to derive, and promote the result


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a session's log. `fields` are texts: version, items, reason ..."""

    id: str
    type: str
    at: float
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SessionPage:
    """A page of sessions, and how many there are under the same filter."""

    total: int
    sessions: tuple[Pointer, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """A completion kept so that feedback can be about it."""

    completion_id: str
    session_id: str
    payload: Mapping[str, Any]
