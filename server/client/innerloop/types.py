"""What goes in and what comes back, as frozen values; fields are those of the HTTP contract.

Fields that a newer server adds are left out, so that an older client goes on working.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

Messages = Sequence[Mapping[str, str]]
Prompt = str | Messages
"""One user turn, or a chat that ends with one: ``[{"role": ..., "content": ...}, ...]``."""


@dataclass(frozen=True)
class Example:
    """A prompt and what should be answered."""

    prompt: Prompt
    completion: str


@dataclass(frozen=True)
class Preference:
    """A prompt with a better and a worse answer."""

    prompt: Prompt
    chosen: str
    rejected: str


Lesson = Example | Preference | tuple[str, str] | Mapping[str, Any]
"""The last is one of the `examples` of ``POST /adapt``, as it is."""


class _Read:
    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Self:
        """Take the known fields out of a server's answer."""
        known = {one.name for one in fields(cls)}  # type: ignore[arg-type]
        return cls(**{name: value for name, value in document.items() if name in known})


@dataclass(frozen=True)
class Answer(_Read):
    """What was generated. ``adapter_version`` 0 is untaught; ``house_version`` is there where the
    tenant's house took part."""

    id: str
    session_id: str
    text: str
    finish_reason: str
    adapter_version: int
    adapter_used: bool
    usage: Mapping[str, int]
    choice_logprobs: Mapping[str, float] | None = None
    logprobs: Sequence[Mapping[str, Any]] | None = None
    house_version: int | None = None
    in_context: Sequence[int] | None = None


@dataclass(frozen=True)
class Learned(_Read):
    """What became of feedback to a house. Losses in nats per token; ``reason`` says why it was
    refused, or taken in part."""

    adapter_version: int
    accepted: bool
    items: Sequence[int]
    steps: int
    examples_used: int
    reason: str | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    update_norm: float | None = None
    duration_ms: float | None = None


@dataclass(frozen=True)
class Adapted(_Read):
    """What became of feedback. Losses in nats per token; ``reason`` says why it was refused, or
    taken in part; ``waiting`` that it is kept, and learned when the session is unpinned."""

    session_id: str
    adapter_version: int
    accepted: bool
    items: Sequence[int]
    steps: int
    examples_used: int
    reason: str | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    update_norm: float | None = None
    duration_ms: float | None = None
    waiting: bool = False


@dataclass(frozen=True)
class SessionInfo(_Read):
    """Where a session stands. Times are Unix seconds."""

    session_id: str
    adapter_version: int
    created_at: float
    updated_at: float
    items: int
    pending_items: int
    applied_items: int
    pinned: bool = False
    used_at: float = 0.0
    imported: bool = False
    house: bool = True  # it builds upon the tenant's house, where there is one


@dataclass(frozen=True)
class HouseInfo(_Read):
    """Where a house stands. Times are Unix seconds; ``versions`` as operators see a session's."""

    adapter_version: int
    created_at: float
    updated_at: float
    items: int
    pending_items: int
    applied_items: int
    versions: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Token(_Read):
    """What a browser shows in place of a key. ``expires_at`` is in Unix seconds."""

    token: str = field(repr=False)
    session_id: str
    expires_at: float
    scopes: Sequence[str] = ()


@dataclass(frozen=True)
class Item(_Read):
    """One piece of feedback in a session's log."""

    id: int
    kind: str
    status: str
    created_at: float
    reason: str | None = None
    adapter_version: int | None = None
    superseded_by: int | None = None
    messages: Messages = field(default_factory=tuple)
    completion: str | None = None
    rejected: str | None = None
    rating: int | None = None
    completion_id: str | None = None
    comment: str | None = None


@dataclass(frozen=True)
class Event(_Read):
    """Something that happened to a session; ``type`` as in ``GET /sessions/{id}/events``."""

    id: str  # to go on from; empty where nothing can follow
    type: str
    session_id: str
    at: float | None = None
    adapter_version: int | None = None
    items: Sequence[int] = ()
    reason: str | None = None


def prompt_fields(prompt: Prompt) -> dict[str, Any]:
    """The prompt as the contract's field."""
    if isinstance(prompt, str):
        return {"prompt": prompt}
    return {"messages": [dict(message) for message in prompt]}


def lesson_fields(lesson: Lesson) -> dict[str, Any]:
    """A lesson as the contract's object.

    Raises:
        TypeError: it is none.
    """
    if isinstance(lesson, Mapping):
        return dict(lesson)
    if isinstance(lesson, tuple):
        lesson = Example(*lesson)
    if not isinstance(lesson, Example | Preference):
        raise TypeError(
            "a lesson is an Example, a Preference, a (prompt, completion) pair or a dict as "
            f"POST /adapt takes it, not {type(lesson).__name__}"
        )
    found = prompt_fields(lesson.prompt)
    if isinstance(lesson, Preference):
        return found | {"chosen": lesson.chosen, "rejected": lesson.rejected}
    return found | {"completion": lesson.completion}
