"""The JSON of `/admin`: what operators send and get."""

from typing import Literal

from pydantic import BaseModel, Field

from server.api.feedback_schemas import (
    ItemAnswer,
)
from server.api.schemas import Prompted, SessionAnswer, Wire

LOG_LINES = 200
ITEMS_SHOWN = 1000


class VersionAnswer(BaseModel):
    """A kept version and what it came from."""

    adapter_version: int
    created_at: float = Field(description="Unix time, seconds")
    snapshot_bytes: int = Field(description="stored; 0: derived again when it is gone back to")
    start: str = Field(
        description="where the derivation began: `session_init`, or `house`; `import`: it was not "
        "derived here"
    )
    items: list[int] = Field(description="feedback items derived over")
    steps: int
    step_losses: list[float | None] = Field(description="inner loss at the start of each step")
    gradient_norms: list[float | None] = Field(description="at each step, before the clip")
    loss_before: float | None = Field(description="mean loss on the items, untaught")
    loss_after: float | None = Field(description="mean loss on the items, taught")
    update_norm: float | None = Field(
        description="distance of the adapter's parameters from where they began, as the guard "
        "measures it; how far the weights change by it, `…/versions/{n}/norms` tells"
    )
    guard_scale: float | None = Field(description="factor on the update that the guard accepted")
    duration_ms: float | None
    rule_hash: str
    base_fingerprint: str
    house_version: int | None = Field(None, description="of the house that it was derived from")


class LogLine(BaseModel):
    """One event of a session's log."""

    at: float = Field(description="Unix time, seconds")
    type: str
    fields: dict[str, str]


class SessionDetail(SessionAnswer):
    """One session as the operator sees it."""

    tenant: str

    base_fingerprint: str = Field(description="of the model that the version in force belongs to")
    versions: list[VersionAnswer] = Field(description="kept ones, oldest first")
    feedback: list[ItemAnswer] = Field(description=f"by id, the last {ITEMS_SHOWN}")
    log: list[LogLine] = Field(description=f"newest first, at most {LOG_LINES} lines")


class RollbackBody(Wire):
    """Body of `POST /admin/sessions/{id}/rollback`."""

    adapter_version: int = Field(ge=0, description="a kept version, or 0 for untaught")


class PinBody(Wire):
    """Body of `POST /admin/sessions/{id}/pin`."""

    pinned: bool = Field(True, description="false: learn what waits, and go on")


class CompareBody(Prompted):
    """Body of `POST /admin/sessions/{id}/compare`."""

    max_tokens: int = Field(64, ge=1, le=4096, description="of each of the two answers")
    adapter_version: int | None = Field(None, ge=0, description="a kept version; default newest")


class ComparedToken(BaseModel):
    """A token of an answer with what base and session think of it, natural logarithms."""

    id: int
    token: str
    base_logprob: float
    session_logprob: float


class ComparedAnswer(BaseModel):
    """A greedy answer; its end token is the last of `tokens`, which are empty where an answer that
    was cut off leaves no room for it.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    tokens: list[ComparedToken]


class CompareAnswer(BaseModel):
    """The same prompt under base and session. Nothing of it is kept."""

    session_id: str
    adapter_version: int
    adapter_used: bool = Field(
        description="false where the session leaves this prompt to the base; its log-probabilities "
        "are the adapter's all the same, and without recall"
    )
    house_version: int | None = Field(
        None, description="of the tenant's house, where that took part in the session's answer"
    )
    in_context: list[int] | None = Field(
        None, description="feedback items in the session's prompt, where the server puts them there"
    )
    base: ComparedAnswer
    session: ComparedAnswer
