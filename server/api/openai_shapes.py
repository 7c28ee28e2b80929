"""Answers laid out as OpenAI's objects: chats and texts, whole and in chunks.

It knows answers and their layout; nothing about requests, sessions or HTTP.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar, Protocol

from server.api.openai_schemas import ChatUsage
from server.flows.answering import Answer, Sampled
from server.flows.encoding import Encoding
from server.runtime import Runtime

Json = dict[str, Any]


@dataclass(frozen=True)
class Labels:
    """What all objects of one request carry."""

    id: str
    session_id: str | None
    created: int
    model: str
    fingerprint: str

    @classmethod
    def of(cls, running: Runtime, completion_id: str, session_id: str | None) -> "Labels":
        """The labels of an answer that begins now."""
        artifact = running.artifact
        now = int(time.time())
        return cls(completion_id, session_id, now, artifact.name, artifact.fingerprint[:16])

    def fields(self, kind: str) -> Json:
        """Members of an object of that kind."""
        found: Json = {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }
        return found if self.session_id is None else found | {"session_id": self.session_id}

    def choice_id(self, index: int) -> str:
        """What feedback on a choice names: the answer's own id for the first of them."""
        return self.id if index == 0 else f"{self.id}.{index}"


class Layout(Protocol):
    """How the choices of one face look."""

    kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    def whole(self, answer: Answer) -> Json:
        """Members of a whole choice."""
        ...

    def begin(self) -> list[Json]:
        """Members of the pieces that come before a choice's first text."""
        ...

    def piece(self, index: int, text: str, sampled: Sequence[Sampled]) -> Json:
        """Members of one piece of a choice."""
        ...

    def end(self) -> Json:
        """Members of a choice's last piece, which has no text."""
        ...


class ChatLayout:
    """Choices of `/v1/chat/completions`."""

    kind: ClassVar[str] = "chat.completion"
    chunk_kind: ClassVar[str] = "chat.completion.chunk"

    def __init__(self, encoding: Encoding, logprobs: bool) -> None:
        self._encoding = encoding
        self._logprobs = logprobs

    def whole(self, answer: Answer) -> Json:
        """A message."""
        message = {"role": "assistant", "content": answer.finished.text, "refusal": None}
        return {"message": message, "logprobs": self._table(answer.sampled)}

    def begin(self) -> list[Json]:
        """The role."""
        return [{"delta": {"role": "assistant", "content": ""}, "logprobs": None}]

    def piece(self, index: int, text: str, sampled: Sequence[Sampled]) -> Json:
        """A delta."""
        return {"delta": {"content": text}, "logprobs": self._table(sampled)}

    def end(self) -> Json:
        """An empty delta."""
        return {"delta": {}, "logprobs": None}

    def _table(self, sampled: Sequence[Sampled]) -> Json | None:
        if not self._logprobs:
            return None
        content = [
            self._token(token.id, token.logprob)
            | {"top_logprobs": [self._token(*likely) for likely in token.top]}
            for token in sampled
        ]
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> Json:
        text = self._encoding.token_text(token_id)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


class TextLayout:
    """Choices of `/v1/completions`."""

    kind: ClassVar[str] = "text_completion"
    chunk_kind: ClassVar[str] = "text_completion"

    def __init__(self, encoding: Encoding, prompt: str, echo: bool, logprobs: int | None) -> None:
        """``logprobs``: None for no table."""
        self._encoding = encoding
        self._echoed = prompt if echo else ""
        self._logprobs = logprobs
        self._begin = len(prompt)
        self._offsets: dict[int, int] = {}  # where a choice's next token begins

    def whole(self, answer: Answer) -> Json:
        """A text."""
        text = self._echoed + answer.finished.text
        return {"text": text, "logprobs": self._table(self._begin, answer.sampled)}

    def begin(self) -> list[Json]:
        """The prompt, where it is repeated."""
        return [{"text": self._echoed, "logprobs": None}] if self._echoed else []

    def piece(self, index: int, text: str, sampled: Sequence[Sampled]) -> Json:
        """A piece of text."""
        offset = self._offsets.get(index, self._begin)
        table = self._table(offset, sampled)
        if table is not None:
            self._offsets[index] = offset + sum(map(len, table["tokens"]))
        return {"text": text, "logprobs": table}

    def end(self) -> Json:
        """No text."""
        return {"text": "", "logprobs": None}

    def _table(self, offset: int, sampled: Sequence[Sampled]) -> Json | None:
        """The older layout: a column each. Offsets count the prompt's characters too."""
        if self._logprobs is None:
            return None
        name = self._encoding.token_text
        tokens = [name(token.id) for token in sampled]
        *begins, _ = accumulate(map(len, tokens), initial=offset)
        # Halves of characters share one name: the likeliest of them keeps it.
        tops = [{name(number): value for number, value in reversed(token.top)} for token in sampled]
        return {
            "tokens": tokens,
            "token_logprobs": [token.logprob for token in sampled],
            "top_logprobs": tops if self._logprobs else None,
            "text_offset": begins,
        }


def whole_object(labels: Labels, layout: Layout, answers: Sequence[Answer]) -> Json:
    """A completion as one object."""
    choices = [
        {"index": index, **layout.whole(answer), **_ended(labels, index, answer)}
        for index, answer in enumerate(answers)
    ]
    return {
        **labels.fields(layout.kind),
        **_answered_by(answers[0]),
        "choices": choices,
        "usage": usage(answers),
    }


class Chunks:
    """The objects of a stream."""

    def __init__(self, labels: Labels, layout: Layout, include_usage: bool) -> None:
        self._labels = labels
        self._layout = layout
        # Where usage is asked for, every chunk has the member.
        self._usage: Json = {"usage": None} if include_usage else {}

    def begin(self, index: int) -> list[Json]:
        """What comes before a choice's first text."""
        return [self._chunk(index, members) for members in self._layout.begin()]

    def piece(self, index: int, text: str, sampled: Sequence[Sampled]) -> Json:
        """One piece of a choice."""
        return self._chunk(index, self._layout.piece(index, text, sampled))

    def end(self, index: int, answer: Answer) -> Json:
        """A choice's last chunk, which says why it ended and what feedback names."""
        found = self._chunk(index, self._layout.end() | _ended(self._labels, index, answer))
        return found | _answered_by(answer)

    def usage(self, answers: Sequence[Answer]) -> list[Json]:
        """The last chunk of all, where it is asked for: what they took."""
        if not self._usage:
            return []
        fields = self._labels.fields(self._layout.chunk_kind) | _answered_by(answers[0])
        return [{**fields, "choices": [], "usage": usage(answers)}]

    def _chunk(self, index: int, members: Json) -> Json:
        choice = {"index": index, "finish_reason": None, **members}
        return {
            **self._labels.fields(self._layout.chunk_kind),
            "choices": [choice],
            **self._usage,
        }


def usage(answers: Sequence[Answer]) -> Json:
    """What the answers to one prompt took together; the prompt is counted once."""
    prompt = answers[0].finished.prompt_tokens
    completion = sum(answer.finished.completion_tokens for answer in answers)
    return ChatUsage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details={"cached_tokens": answers[0].finished.cached_tokens},
    ).model_dump()


def _answered_by(answer: Answer) -> Json:
    found: Json = {
        "adapter_version": answer.adapter_version,
        "adapter_used": answer.finished.adapter_used,
    }
    return found if answer.shown is None else found | {"in_context": list(answer.shown)}


def _ended(labels: Labels, index: int, answer: Answer) -> Json:
    found: Json = {"finish_reason": answer.finished.finish_reason}
    if labels.session_id is not None:  # without a session nothing is kept for feedback
        found["completion_id"] = labels.choice_id(index)
    return found
