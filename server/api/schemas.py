"""The JSON that clients send and get: wire types, checked at the door.

A field here is a promise to clients, so these types are neither the engine's nor the store's: each
of the three changes for its own reasons. Unknown fields are refused by name.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from server.flows.in_context import MAX_EXAMPLES

MAX_TEXT_CHARS = 200_000
"""No context that is served here is longer; the model's own limit in tokens comes after."""
MAX_MESSAGES = 256
DEFAULT_MAX_TOKENS = 128
SESSION_ID_PATTERN = r"^[A-Za-z0-9._:@-]{1,128}$"
SESSION_ID_RULE = "1 to 128 of letters, digits and . _ : @ -, not all of them dots"


Turns = TypeVar("Turns", bound=Sequence[Any])


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must contain more than white space")
    return text


def _distinct(texts: list[str]) -> list[str]:
    if len(set(texts)) < len(texts):
        raise ValueError("must differ from each other")
    return texts


def _more_than_dots(session_id: str) -> str:
    """Refuse what clients take for a step in a URL's path, and so could never name in one."""
    if not session_id.strip("."):
        raise ValueError("must not be of dots only: URLs take `.` and `..` for other folders")
    return session_id


MORE_THAN_DOTS = AfterValidator(_more_than_dots)
"""With the pattern: for an id in a path, a query or a header too."""
SessionId = Annotated[
    str,
    Field(pattern=SESSION_ID_PATTERN, description=SESSION_ID_RULE, examples=["customer-17"]),
    MORE_THAN_DOTS,
]
MaybeSessionId = Annotated[
    SessionId | None, Field(description="only with a session token it may be left out")
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


InContextCount = Annotated[
    int | None,
    Field(
        ge=0,
        le=MAX_EXAMPLES,
        strict=True,
        description="put so many of the session's most relevant feedback items into the prompt, as "
        "earlier turns; default as the server is set",
    ),
]


class Wire(BaseModel):
    """What every request has in common: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Message(Wire):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=MAX_TEXT_CHARS)


def ending_with_a_question(messages: Turns) -> Turns:
    """Refuse a chat, of turns of any kind, that does not end with a user's question.

    Raises:
        ValueError: the last turn is not a user's, or is blank.
    """
    if messages[-1].role != "user":
        raise ValueError("the last turn must have the role user")
    if not messages[-1].content.strip():
        raise ValueError("the last turn must contain more than white space")
    return messages


class Prompted(Wire):
    """Either one user turn (`prompt`) or a chat that ends with one (`messages`)."""

    prompt: Text | None = Field(None, description="one user turn", examples=["Do you ship abroad?"])
    messages: (
        Annotated[
            list[Message],
            Field(min_length=1, max_length=MAX_MESSAGES),
            AfterValidator(ending_with_a_question),
        ]
        | None
    ) = Field(None, description="a chat that ends with a user turn")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("send either `prompt` or `messages`")
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


class NamedSchema(Wire):
    """A JSON schema and what it is called."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="for people")
    description: str | None = Field(None, max_length=10_000, description="for people")
    json_schema: dict[str, Any] = Field(alias="schema", description="JSON schema of the answer")
    strict: bool | None = Field(None, description="taken: a schema is always enforced")


class ResponseFormat(Wire):
    """What the answer is held to: free text, any JSON object, or a JSON schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = Field(None, description="with type json_schema")

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema is for type json_schema, which needs it")
        return self

    @property
    def schema_text(self) -> str | None:
        """The JSON schema as JSON; None for free text."""
        if self.json_schema is not None:
            return json.dumps(self.json_schema.json_schema)
        return None if self.type == "text" else '{"type": "object"}'


class GenerateBody(Prompted):
    """Body of `POST /generate`."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"session_id": "customer-17", "prompt": "Do you ship to Ireland?"}
        }
    )

    session_id: MaybeSessionId = None
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
    response_format: ResponseFormat | None = Field(
        None, description="hold the answer to JSON; not with `choices` or `min_tokens`"
    )
    adapter_version: int | None = Field(
        None, ge=0, description="a kept version to answer with; 0 is untaught; default the newest"
    )
    recall: bool | None = Field(
        None,
        description="follow what was taught for prompts like this one, word by word; default as "
        "the server is set",
    )
    in_context: InContextCount = None

    @model_validator(mode="after")
    def _min_below_max(self) -> Self:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError("`min_tokens` must not be above `max_tokens`")
        return self

    @model_validator(mode="after")
    def _format_alone(self) -> Self:
        held = self.response_format is not None and self.response_format.type != "text"
        if held and (self.choices is not None or self.min_tokens):
            raise ValueError("`response_format` goes with neither `choices` nor `min_tokens`")
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
    house_version: int | None = Field(
        None, description="of the tenant's house, where that took part in the answer"
    )
    in_context: list[int] | None = Field(
        None, description="feedback items that were put into the prompt, where that was asked for"
    )
    choice_logprobs: dict[str, float] | None = Field(
        None, description="log-probability of each of `choices`, were these all there is"
    )
    logprobs: list[TokenLogprob] | None = None


class Fork(Wire):
    """What a new session begins with."""

    session_id: SessionId
    adapter_version: int | None = Field(None, ge=0, description="a kept version; default newest")


class SessionBody(Wire):
    """Body of `POST /sessions`."""

    session_id: SessionId | None = Field(None, description="drawn at random when it is left out")
    fork: Fork | None = Field(None, description="begin with what another session was taught")
    house: bool = Field(
        True, description="false: the session does without the tenant's house, for good"
    )


class SessionAnswer(BaseModel):
    """Where a session stands."""

    session_id: str
    adapter_version: int = Field(description="0 is untaught")
    created_at: float = Field(description="Unix time, seconds")
    updated_at: float = Field(description="Unix time, seconds")
    items: int = Field(description="feedback items ever sent, whatever became of them")
    pending_items: int
    applied_items: int
    pinned: bool = Field(description="feedback is kept, and learned only when it is unpinned")
    used_at: float = Field(description="last answer or change, Unix time, seconds")
    imported: bool = Field(
        description="the version in force was imported: it is served as it is and takes no feedback"
    )
    house: bool = Field(description="false: it does without the tenant's house")
