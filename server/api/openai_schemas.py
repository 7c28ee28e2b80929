"""The part of OpenAI's API that is served: its field names, its meaning.

A field that would change the answer and is not served is refused by name; one that clients send at
its neutral value is taken at that value only. https://platform.openai.com/docs/api-reference/chat
"""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from server.api.schemas import (
    MAX_MESSAGES,
    MAX_TEXT_CHARS,
    InContextCount,
    Message,
    ResponseFormat,
    SessionId,
    Stops,
    Wire,
    ending_with_a_question,
)

MAX_CHOICES = 8
"""Each answer takes a row of the batch."""
COMPLETION_TOKENS = 16
_UNUSED = "taken, and not used"
_NEUTRAL = "taken at null and at the value that changes nothing"


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
    """One turn; `developer` is OpenAI's newer word for `system`.

    An answer's message can be sent back as it came: what else OpenAI's clients put into it is taken
    at its neutral value.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        str,
        Field(max_length=MAX_TEXT_CHARS),
        BeforeValidator(_join_parts, json_schema_input_type=str | list[TextPart]),
    ]
    name: str | None = Field(None, max_length=1000, description=_UNUSED)
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[str], Field(max_length=0)] | None = None
    tool_calls: Annotated[list[str], Field(max_length=0)] | None = None

    def plain(self) -> Message:
        """The turn in our own words."""
        role = "system" if self.role == "developer" else self.role
        return Message(role=role, content=self.content)


class StreamOptions(Wire):
    """What a stream tells besides text."""

    include_usage: bool = False


def _neutral(*values: Any) -> AfterValidator:
    """Take a field only where it changes nothing: at null or one of ``values``."""

    def check(value: Any) -> Any:
        if value is not None and value not in values:
            others = "".join(f" or {json.dumps(one)}" for one in values)
            raise ValueError(
                f"a known field, but not supported: leave it out, or send null{others}"
            )
        return value

    return AfterValidator(check)


class Completing(Wire):
    """What the two ways to ask for completions have in common."""

    model: str = Field(max_length=256, description="exactly the name that /v1/models lists")
    session_id: SessionId | None = Field(
        None, description="the session; the header X-Session-ID does the same"
    )
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(
        None, ge=0, le=2, description="unlike at OpenAI, 0 by default: greedy and repeatable"
    )
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(
        None, ge=1, le=MAX_CHOICES, description="answers, each with random numbers of its own"
    )
    stop: Stops | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=1000, description=_UNUSED)
    safety_identifier: str | None = Field(None, max_length=1000, description=_UNUSED)
    prompt_cache_key: str | None = Field(None, max_length=1000, description=_UNUSED)
    metadata: dict[str, Any] | None = Field(None, description=_UNUSED)
    service_tier: Annotated[Any, _neutral("auto", "default")] = Field(None, description=_NEUTRAL)
    logit_bias: Annotated[Any, _neutral({})] = Field(None, description=_NEUTRAL)
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for stream: true")
        return self


class ChatBody(Completing):
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

    messages: Annotated[
        list[ChatMessage],
        Field(min_length=1, max_length=MAX_MESSAGES),
        AfterValidator(ending_with_a_question),
    ]
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)
    logprobs: bool | None = Field(None, description="of the sampled tokens")
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="so many likeliest tokens at each place; needs logprobs"
    )
    response_format: ResponseFormat | None = Field(
        None, description="hold the answer to JSON, or to a JSON schema"
    )
    store: Literal[False] | None = None
    tools: Annotated[Any, _neutral([])] = Field(None, description=_NEUTRAL)
    tool_choice: Annotated[Any, _neutral("none")] = Field(None, description=_NEUTRAL)
    parallel_tool_calls: bool | None = Field(None, description=_UNUSED)
    functions: Annotated[Any, _neutral([])] = Field(None, description=_NEUTRAL)
    function_call: Annotated[Any, _neutral("none")] = Field(None, description=_NEUTRAL)
    reasoning_effort: Annotated[Any, _neutral()] = Field(None, description=_NEUTRAL)
    modalities: Annotated[Any, _neutral(["text"])] = Field(None, description=_NEUTRAL)
    in_context: InContextCount = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("send max_completion_tokens or max_tokens, not both")
        return self

    @property
    def turns(self) -> list[dict[str, str]]:
        """The chat up to where the assistant speaks."""
        plain = [message.plain() for message in self.messages]
        return [{"role": turn.role, "content": turn.content} for turn in plain]


def _one_text(prompt: Any) -> Any:
    """A list of one text as the text; a union of both would name pydantic's branches."""
    if not isinstance(prompt, list):
        return prompt
    if len(prompt) == 1 and isinstance(prompt[0], str):
        return prompt[0]
    if any(isinstance(part, int | list) for part in prompt):
        raise ValueError("tokens are not taken as a prompt: send it as a text")
    raise ValueError("one prompt is answered at a time: send one text, or ask for n answers to it")


class CompletionBody(Completing):
    """Body of `POST /v1/completions`."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "innerloop-tiny",
                "prompt": "Once upon a time",
                "max_tokens": 16,
                "session_id": "customer-17",
            }
        }
    )

    prompt: Annotated[
        str,
        Field(min_length=1, max_length=MAX_TEXT_CHARS),
        BeforeValidator(_one_text, json_schema_input_type=str | list[str]),
    ] = Field(description="bare text, without a chat template; the answer goes on from its end")
    max_tokens: int | None = Field(
        None, ge=1, le=1_000_000, description=f"by default {COMPLETION_TOKENS}, as at OpenAI"
    )
    logprobs: int | None = Field(
        None, ge=0, le=5, strict=True, description="so many likeliest tokens beside the sampled one"
    )
    echo: bool | None = Field(None, description="begin the text with the prompt")
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None

    @model_validator(mode="after")
    def _echo_has_no_logprobs(self) -> Self:
        if self.echo and self.logprobs is not None:
            raise ValueError("echo repeats the prompt as text only: leave echo or logprobs out")
        return self


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
