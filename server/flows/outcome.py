"""What feedback is on its way in, and what is told about it afterwards.

These are the flow's own types: `Lesson` becomes the store's item, `Outcome` the answer that is kept
with an idempotency key.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from adapters.config import AdapterError
from server.engine import Candidate
from server.sessions import Item, Kind, NewItem, Version, prompt_key, rated

Turns = Sequence[Mapping[str, str]]


class LessonError(AdapterError, ValueError):
    """A lesson cannot be taught; nothing was kept. ``index`` says which one."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


class SessionFull(AdapterError, RuntimeError):
    """The session holds as many items as are derived over."""


@dataclass(frozen=True)
class Lesson:
    """One piece of feedback about these turns: what should be answered, or how good an answer was.

    A preference has what was ``rejected``, and so has a correction: what it corrects. A rating
    alone has its ``rating``. ``cut``: the answer of the model was stopped before its end. ``raw``:
    the turns are bare text that the completion goes on from, without a chat template.
    """

    turns: Turns
    completion: str
    kind: Kind = "demonstration"
    rejected: str | None = None
    rating: int = 0  # 1 or -1
    cut: bool = False
    raw: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)  # kept with it, teaches nothing

    def item(self, activation_index: int) -> NewItem:
        """The lesson as it is kept; ``activation_index`` counts tokens before the adapter acts."""
        payload = {
            "messages": [dict(turn) for turn in self.turns],
            "completion": self.completion,
            "activation_index": activation_index,
            **self.extra,
        }
        if self.rejected is not None:
            payload["rejected"] = self.rejected
        if self.kind == "rating":
            payload["rating"] = self.rating
        if self.cut:
            payload["cut"] = True
        said = rated(self.completion, self.rating > 0) if self.kind == "rating" else ""
        if not self.raw:
            return NewItem(self.kind, payload, prompt_key(self.turns), said)
        # The same words in a chat are another prompt: neither supersedes the other.
        key = prompt_key([{**turn, "raw": True} for turn in self.turns])
        return NewItem(self.kind, payload | {"raw": True}, key, said)

    @classmethod
    def of(cls, item: Item) -> Self:
        """Undo `item`, but for what teaches nothing."""
        payload = item.payload
        return cls(
            payload["messages"],
            payload["completion"],
            item.kind,
            payload.get("rejected"),
            payload["rating"] if item.kind == "rating" else 0,  # others may keep one beside them
            payload.get("cut", False),
            payload.get("raw", False),
        )


@dataclass(frozen=True)
class Outcome:
    """What became of a request's lessons. Losses in nats per token."""

    session_id: str
    adapter_version: int
    accepted: bool
    reason: str | None
    items: tuple[int, ...]
    steps: int
    examples_used: int
    loss_before: float | None = None
    loss_after: float | None = None
    update_norm: float | None = None
    duration_ms: float | None = None

    def stored(self) -> dict[str, Any]:
        """As JSON, to be kept with the idempotency key; the store fills the version in."""
        return {key: value for key, value in asdict(self).items() if key != "adapter_version"}

    @classmethod
    def restored(cls, answer: Mapping[str, Any]) -> Self:
        """Undo `stored`."""
        return cls(**{**answer, "items": tuple(answer["items"])})


@dataclass(frozen=True)
class Appended:
    """Lessons that are in the log. ``outcome`` is there where the request was settled before."""

    items: tuple[int, ...]
    incarnation: str  # of the session: another one of its name counts its items from 1, too
    key: str | None
    repeated: bool = False
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Forgotten:
    """What forgetting an item left."""

    session_id: str
    item: int
    adapter_version: int
    restored_items: tuple[int, ...]
    deleted_versions: tuple[int, ...]
    reason: str | None = None  # why nothing is taught any more


def waits(item: Item) -> bool:
    """Whether a pending item is to wait for its session's next feedback."""
    return item.status == "pending" and bool(item.payload.get("deferred"))


def of_candidate(
    session_id: str, items: Sequence[int], version: int, used: int, candidate: Candidate
) -> Outcome:
    """The outcome of a derivation over ``used`` items; ``version`` is in force afterwards."""
    return Outcome(
        session_id,
        version,
        candidate.verdict.accepted,
        candidate.verdict.reason,
        tuple(items),
        candidate.steps,
        used,
        finite(candidate.loss_before),
        finite(candidate.loss_after),
        finite(candidate.update_norm),
        candidate.duration_ms,
    )


def of_refusal(session_id: str, items: Sequence[int], version: int, reason: str) -> Outcome:
    """The outcome where no candidate came about."""
    return Outcome(session_id, version, False, reason, tuple(items), 0, 0)


def of_items(
    session_id: str, active: int, items: Sequence[Item], version: Version | None
) -> Outcome:
    """The outcome of items that are not pending any more.

    ``version`` is the first one that contains them, where there is one and it is still kept.
    """
    refused = [item for item in items if item.status == "refused"]
    ids = tuple(item.id for item in items)
    if refused:
        return of_refusal(session_id, ids, active, refused[0].reason or "refused")
    if version is None:
        return Outcome(session_id, active, True, None, ids, 0, 0)
    record = version.record
    return Outcome(
        session_id,
        version.number,
        True,
        record.guard.get("reason"),
        ids,
        record.steps,
        len(record.item_ids),
        record.loss_before,
        record.loss_after,
        record.update_norm,
        record.guard.get("duration_ms"),
    )


def finite(value: float) -> float | None:
    """``value``, or None where JSON has no word for it."""
    return value if math.isfinite(value) else None
