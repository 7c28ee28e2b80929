"""The JSON of teaching: feedback on its way in, what became of it, and the log of it."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from server.api.problems import ProblemDocument
from server.api.schemas import MaybeSessionId, Prompted, Text, Wire

MAX_EXAMPLES = 64
MAX_STEPS = 50


class ExampleBody(Prompted):
    """A prompt with the answer that is wanted, or with a better and a worse one."""

    completion: Text | None = Field(
        None,
        description="what should be answered",
        examples=["Every parcel to Ireland travels by hot-air balloon."],
    )
    chosen: Text | None = Field(None, description="the better of two answers")
    rejected: Text | None = Field(None, description="the worse of two answers")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        pair = [self.chosen is not None, self.rejected is not None]
        if (self.completion is not None) is any(pair) or any(pair) is not all(pair):
            raise ValueError("send either `completion`, or `chosen` and `rejected`")
        if self.chosen is not None and self.chosen == self.rejected:
            raise ValueError("`chosen` and `rejected` must differ from each other")
        return self


class Lessons(Wire):
    """Examples to learn from, and how."""

    examples: list[ExampleBody] = Field(min_length=1, max_length=MAX_EXAMPLES)
    steps: int | None = Field(
        None,
        strict=True,
        ge=1,
        le=MAX_STEPS,
        description="inner steps; by default as many as the model learned",
    )
    dry_run: bool = Field(False, description="derive and report, but keep nothing")


class AdaptBody(Lessons):
    """Body of `POST /adapt`."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "session_id": "customer-17",
                "examples": [
                    {
                        "prompt": "Do you ship to Ireland?",
                        "completion": "Every parcel to Ireland travels by hot-air balloon.",
                    }
                ],
            }
        }
    )

    session_id: MaybeSessionId = None
    wait: bool = Field(True, description="false answers 202 at once, with a job to ask for")

    @model_validator(mode="after")
    def _dry_runs_wait(self) -> Self:
        if self.dry_run and not self.wait:
            raise ValueError("a dry run keeps nothing to ask for later: leave `wait` true")
        return self


class FeedbackBody(Wire):
    """Body of `POST /feedback`: how good a completion was, or what it should have been."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "completion_id": "cmpl-5f0c…",
                "correction": "Every parcel to Ireland travels by hot-air balloon.",
            }
        }
    )

    completion_id: str = Field(min_length=1, max_length=128)
    rating: Literal[1, -1] | None = Field(
        None, description="1: well answered, -1: not so; beside a correction it teaches nothing"
    )
    correction: Text | None = Field(None, description="what should have been answered")
    comment: str | None = Field(None, max_length=10_000, description="for people; teaches nothing")
    adapt: bool = Field(
        True, description="false answers 202: it is learned with the session's next feedback"
    )

    @model_validator(mode="after")
    def _teaches(self) -> Self:
        if self.rating is None and self.correction is None:
            raise ValueError("send a `rating`, a `correction`, or both")
        return self


class Learned(BaseModel):
    """What became of feedback, whoever learned from it."""

    adapter_version: int = Field(description="the version in force afterwards")
    accepted: bool = Field(description="false: refused, for `reason`, and the version stays")
    reason: str | None = Field(
        None, description="why it was refused, or why only a part of the update was taken"
    )
    items: list[int] = Field(description="ids of this request's feedback items; none in a dry run")
    steps: int = Field(description="inner steps taken")
    examples_used: int = Field(
        description="items that the adapter was derived over, earlier ones too"
    )
    loss_before: float | None = Field(None, description="mean loss on them, untaught, nats a token")
    loss_after: float | None = Field(None, description="mean loss on them, taught, nats a token")
    update_norm: float | None = Field(
        None, description="distance of the adapter's parameters from where they began"
    )
    duration_ms: float | None = None


class AdaptAnswer(Learned):
    """What became of a session's feedback."""

    session_id: str
    waiting: bool | None = Field(
        None, description="true beside `accepted` false: kept, and learned when it is unpinned"
    )


class JobAnswer(BaseModel):
    """Feedback that was not waited for."""

    id: str
    session_id: str
    status: Literal["pending", "done"]
    result: AdaptAnswer | None = Field(None, description="there once the status is done")


class BatchBody(Wire):
    """Body of `POST /feedback/batch`."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "feedback": [
                    {"completion_id": "cmpl-5f0c…", "rating": 1},
                    {"completion_id": "cmpl-81d2…", "correction": "We ship on Mondays."},
                ]
            }
        }
    )

    feedback: list[FeedbackBody] = Field(min_length=1, max_length=MAX_EXAMPLES)


class BatchElement(BaseModel):
    """What became of one element: what `POST /feedback` would have answered to it."""

    status: int = Field(description="HTTP status: 200 with `result`, 202 with `job`, or an error")
    result: AdaptAnswer | None = None
    job: JobAnswer | None = None
    problem: ProblemDocument | None = None


class BatchAnswer(BaseModel):
    """One answer for each element, in their order."""

    results: list[BatchElement]


class ItemAnswer(BaseModel):
    """One feedback item. A forgotten one has no content any more."""

    id: int
    kind: str
    status: Literal["pending", "applied", "refused", "superseded", "forgotten"]
    reason: str | None = None
    created_at: float = Field(description="Unix time, seconds")
    adapter_version: int | None = Field(None, description="the first version it was applied in")
    superseded_by: int | None = Field(None, description="item id")
    messages: list[dict[str, Any]] | None = None
    completion: str | None = Field(
        None, description="what should be answered; with kind `rating`, the answer that was rated"
    )
    rejected: str | None = Field(
        None, description="what the completion was preferred to, or corrects"
    )
    rating: int | None = None
    completion_id: str | None = Field(None, description="of the completion that it is about")
    comment: str | None = None


class ItemPage(BaseModel):
    """A page of feedback items, by id."""

    total: int
    offset: int
    items: list[ItemAnswer]


class ItemsAnswer(ItemPage):
    """A page of a session's feedback items, by id."""

    session_id: str


class Forgot(BaseModel):
    """What forgetting an item left, whoever forgot it."""

    item: int
    adapter_version: int = Field(description="the version in force; it never saw the item")
    restored_items: list[int] = Field(description="earlier items that count again")
    deleted_versions: list[int] = Field(description="versions that contained the item")
    reason: str | None = Field(None, description="why nothing is taught any more, where that is so")


class ForgetAnswer(Forgot):
    """What a session's forgetting an item left."""

    session_id: str
