"""The JSON that clients send and get: wire types, checked at the door.

A field here is a promise to clients, so these types are neither the engine's nor the store's: each
of the three changes for its own reasons. Unknown fields are refused by name.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MAX_TEXT_CHARS = 200_000
"""No context that is served here is longer; the model's own limit in tokens comes after."""
MAX_MESSAGES = 256
MAX_EXAMPLES = 64
MAX_STEPS = 50
DEFAULT_MAX_TOKENS = 128
SESSION_ID_PATTERN = r"^[A-Za-z0-9._:@-]{1,128}$"


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must contain more than white space")
    return text


def _distinct(texts: list[str]) -> list[str]:
    if len(set(texts)) < len(texts):
        raise ValueError("must differ from each other")
    return texts


SessionId = Annotated[
    str,
    Field(
        pattern=SESSION_ID_PATTERN,
        description="1 to 128 of letters, digits and . _ : @ -",
        examples=["customer-17"],
    ),
]
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS), AfterValidator(_not_blank)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_Stop = Annotated[str, Field(min_length=1, max_length=200)]
Stops = Annotated[
    list[_Stop],
    # Not a union: its errors would name pydantic's branches, not the client's fields.
    BeforeValidator(_as_list, json_schema_input_type=_Stop | list[_Stop]),
    Field(max_length=16, description="the answer ends before any of these texts"),
]


class Wire(BaseModel):
    """What every request has in common: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Message(Wire):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=MAX_TEXT_CHARS)


class Prompted(Wire):
    """Either one user turn (`prompt`) or a chat that ends with one (`messages`)."""

    prompt: Text | None = Field(None, description="one user turn", examples=["Do you ship abroad?"])
    messages: list[Message] | None = Field(
        None, min_length=1, max_length=MAX_MESSAGES, description="a chat that ends with a user turn"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("send either `prompt` or `messages`")
        if self.messages is not None:
            check_turns(self.messages)
        return self

    @property
    def turns(self) -> list[dict[str, str]]:
        """The chat up to where the assistant speaks."""
        if self.messages is None:
            return [{"role": "user", "content": self.prompt or ""}]
        return [{"role": turn.role, "content": turn.content} for turn in self.messages]

    @property
    def place(self) -> str:
        """The field that the turns came in."""
        return "prompt" if self.messages is None else "messages"


def check_turns(messages: Sequence[Message]) -> None:
    """Refuse a chat that does not end with a user's question.

    Raises:
        ValueError: the last turn is not a user's, or is blank.
    """
    if messages[-1].role != "user":
        raise ValueError("the last of `messages` must have the role user")
    _not_blank(messages[-1].content)


class GenerateBody(Prompted):
    """Body of `POST /generate`."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"session_id": "customer-17", "prompt": "Do you ship to Ireland?"}
        }
    )

    session_id: SessionId
    max_tokens: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description=f"most tokens to answer with; by default {DEFAULT_MAX_TOKENS}, or as many as "
        "the model's context still holds",
    )
    min_tokens: int = Field(
        0, ge=0, le=1_000_000, description="the answer does not end before so many tokens"
    )
    temperature: float = Field(0.0, ge=0, le=2, description="0 is greedy and repeatable")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=1_000_000, description="0 means all tokens")
    stop: Stops = Field(default_factory=list)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stream: bool = Field(False, description="answer with server-sent events")
    choices: Annotated[list[Text], AfterValidator(_distinct)] | None = Field(
        None, min_length=1, max_length=256, description="answer with the likeliest of these texts"
    )
    logprobs: bool = Field(False, description="return the sampled tokens with log-probabilities")
    adapter_version: int | None = Field(
        None, ge=0, description="a kept version to answer with; 0 is untaught; default the newest"
    )

    @model_validator(mode="after")
    def _min_below_max(self) -> Self:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError("`min_tokens` must not be above `max_tokens`")
        return self


class Usage(BaseModel):
    """Tokens that a request took."""

    prompt_tokens: int
    completion_tokens: int = Field(description="the end token included")
    cached_tokens: int = Field(description="of the prompt, not computed again for this request")
    total_tokens: int


class TokenLogprob(BaseModel):
    """A sampled token."""

    id: int
    token: str
    logprob: float


class GenerateAnswer(BaseModel):
    """Answer of `POST /generate`; in a stream, the last event's data."""

    id: str = Field(description="name this in POST /feedback")
    session_id: str
    text: str
    finish_reason: Literal["stop", "length"]
    adapter_version: int = Field(description="the version that answered; 0 is untaught")
    adapter_used: bool = Field(
        description="false where the base answered: untaught, or unlike all that was taught"
    )
    usage: Usage
    choice_logprobs: dict[str, float] | None = Field(
        None, description="log-probability of each of `choices`, were these all there is"
    )
    logprobs: list[TokenLogprob] | None = None


class Demonstration(Prompted):
    """A prompt and the answer that is wanted."""

    completion: Text = Field(examples=["Every parcel to Ireland travels by hot-air balloon."])


class AdaptBody(Wire):
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

    session_id: SessionId
    examples: list[Demonstration] = Field(min_length=1, max_length=MAX_EXAMPLES)
    steps: int | None = Field(
        None, ge=1, le=MAX_STEPS, description="inner steps; by default as many as the model learned"
    )
    dry_run: bool = Field(False, description="derive and report, but keep nothing")
    wait: bool = Field(True, description="false answers 202 at once, with a job to ask for")

    @model_validator(mode="after")
    def _dry_runs_wait(self) -> Self:
        if self.dry_run and not self.wait:
            raise ValueError("a dry run keeps nothing to ask for later: leave `wait` true")
        return self


class FeedbackBody(Wire):
    """Body of `POST /feedback`: what the completion should have been."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "completion_id": "cmpl-5f0c…",
                "correction": "Every parcel to Ireland travels by hot-air balloon.",
            }
        }
    )

    completion_id: str = Field(min_length=1, max_length=128)
    correction: Text
    comment: str | None = Field(None, max_length=10_000, description="for people; teaches nothing")


class AdaptAnswer(BaseModel):
    """What became of feedback."""

    session_id: str
    adapter_version: int = Field(description="the version in force afterwards")
    accepted: bool = Field(description="false: refused, for `reason`, and the version stays")
    reason: str | None = None
    items: list[int] = Field(description="ids of this request's feedback items; none in a dry run")
    steps: int = Field(description="inner steps taken")
    examples_used: int = Field(
        description="items that the adapter was derived over, earlier ones too"
    )
    loss_before: float | None = Field(None, description="mean loss on them, untaught, nats a token")
    loss_after: float | None = Field(None, description="mean loss on them, taught, nats a token")
    update_norm: float | None = Field(None, description="distance of the adapter from its start")
    duration_ms: float | None = None


class JobAnswer(BaseModel):
    """Feedback that was not waited for."""

    id: str
    session_id: str
    status: Literal["pending", "done"]
    result: AdaptAnswer | None = Field(None, description="there once the status is done")


class SessionBody(Wire):
    """Body of `POST /sessions`."""

    session_id: SessionId | None = Field(None, description="drawn at random when it is left out")


class SessionAnswer(BaseModel):
    """Where a session stands."""

    session_id: str
    adapter_version: int = Field(description="0 is untaught")
    created_at: float = Field(description="Unix time, seconds")
    updated_at: float = Field(description="Unix time, seconds")
    items: int = Field(description="feedback items ever sent, whatever became of them")
    pending_items: int
    applied_items: int


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
    completion: str | None = None
    completion_id: str | None = Field(None, description="of the completion that it corrects")
    comment: str | None = None


class ItemsAnswer(BaseModel):
    """A page of a session's feedback items, by id."""

    session_id: str
    total: int
    offset: int
    items: list[ItemAnswer]


class ForgetAnswer(BaseModel):
    """What forgetting an item left."""

    session_id: str
    item: int
    adapter_version: int = Field(description="the version in force; it never saw the item")
    restored_items: list[int] = Field(description="earlier items that count again")
    deleted_versions: list[int] = Field(description="versions that contained the item")
    reason: str | None = Field(None, description="why nothing is taught any more, where that is so")
