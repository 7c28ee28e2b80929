"""The part of OpenAI's chat API that is served: its field names, its meaning.

A field that would change the answer and is not served is refused by name; one that clients send at
its neutral value is taken at that value only. https://platform.openai.com/docs/api-reference/chat
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from server.api.schemas import (
    MAX_MESSAGES,
    MAX_TEXT_CHARS,
    Message,
    SessionId,
    Stops,
    Wire,
    check_turns,
)


class TextPart(Wire):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str = Field(max_length=MAX_TEXT_CHARS)


def _join_parts(content: Any) -> Any:
    """Join text parts; a union of both forms would name pydantic's branches in its errors."""
    if not isinstance(content, list):
        return content
    texts = []
    for number, part in enumerate(content):
        if not isinstance(part, dict) or set(part) != {"type", "text"} or part["type"] != "text":
            raise ValueError(f'part {number} must be {{"type": "text", "text": ...}}')
        if not isinstance(part["text"], str):
            raise ValueError(f"part {number}: text must be a string")
        texts.append(part["text"])
    return "".join(texts)


class ChatMessage(Wire):
    """One turn; `developer` is OpenAI's newer word for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        str,
        Field(max_length=MAX_TEXT_CHARS),
        BeforeValidator(_join_parts, json_schema_input_type=str | list[TextPart]),
    ]

    def plain(self) -> Message:
        """The turn in our own words."""
        role = "system" if self.role == "developer" else self.role
        return Message(role=role, content=self.content)


class StreamOptions(Wire):
    """What a stream tells besides text."""

    include_usage: bool = False


class TextFormat(Wire):
    """The only response format served: free text."""

    type: Literal["text"]


class ChatBody(Wire):
    """Body of `POST /v1/chat/completions`."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "innerloop-tiny",
                "messages": [{"role": "user", "content": "Do you ship to Ireland?"}],
                "session_id": "customer-17",
            }
        }
    )

    model: str = Field(max_length=256, description="exactly the name that /v1/models lists")
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    session_id: SessionId | None = Field(
        None, description="the session; the header X-Session-ID does the same"
    )
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(
        None, ge=0, le=2, description="unlike at OpenAI, 0 by default: greedy and repeatable"
    )
    top_p: float | None = Field(None, gt=0, le=1)
    stop: Stops | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = Field(None, description="of the sampled tokens")
    user: str | None = Field(None, max_length=1000, description="taken, and not used")
    n: Literal[1] | None = None
    top_logprobs: Literal[0] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    response_format: TextFormat | None = None
    store: Literal[False] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_turns([message.plain() for message in self.messages])
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for stream: true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("send max_completion_tokens or max_tokens, not both")
        return self

    @property
    def turns(self) -> list[dict[str, str]]:
        """The chat up to where the assistant speaks."""
        plain = [message.plain() for message in self.messages]
        return [{"role": turn.role, "content": turn.content} for turn in plain]


class ModelCard(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time at which the server started, seconds")
    owned_by: str = "innerloop"
    context_tokens: int


class ModelList(BaseModel):
    """All models: one."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ChatUsage(BaseModel):
    """Tokens in OpenAI's words."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]
