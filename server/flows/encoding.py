"""Texts to tokens, off the event loop where that takes long. Knows no session and no engine."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from adapters.chat import ChatEncoder, EncodedPrompt, Message, PromptError
from adapters.support import Example
from server.flows.outcome import Lesson

INLINE_CHARS = 4_000
"""Tokenizing this much takes about a millisecond; a thread's hand-over costs a tenth of that."""

Value = TypeVar("Value")


class Encoding:
    """Encodes for an event loop. Every call raises PromptError as `ChatEncoder` does."""

    def __init__(self, encoder: ChatEncoder) -> None:
        self._encoder = encoder

    async def prompt(self, messages: Sequence[Message], raw: bool = False) -> EncodedPrompt:
        """Encode a chat up to where the assistant speaks; a ``raw`` one is its turns' bare text."""
        return await _run(_chars(messages), lambda: self._prompt(messages, raw))

    async def words(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """The tokens of texts, to compare them by."""
        tokenizer = self._encoder.tokenizer

        def encode() -> list[tuple[int, ...]]:
            every = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
            return [tuple(ids) for ids in every]

        return await _run(sum(map(len, texts)), encode)

    async def example(self, lesson: Lesson) -> Example:
        """Encode feedback.

        Raises:
            PromptError: as `ChatEncoder`, or an answer that was cut before its first token.
        """
        rejected = lesson.rejected or ""
        chars = _chars(lesson.turns) + len(lesson.completion) + len(rejected)
        return await _run(chars, lambda: self._example(lesson))

    def _prompt(self, messages: Sequence[Message], raw: bool) -> EncodedPrompt:
        if raw:
            return self._encoder.raw("".join(message["content"] for message in messages))
        return self._encoder.prompt(messages)

    def _example(self, lesson: Lesson) -> Example:
        prompt = self._prompt(lesson.turns, lesson.raw)
        completion = self._encoder.completion(lesson.completion)
        example = Example(prompt.prefix, prompt.header, completion)
        if lesson.rejected is not None:
            return replace(example, rejected=self._said(lesson.rejected, lesson.cut))
        if not lesson.rating:
            return example
        completion = self._said(lesson.completion, lesson.cut)
        if not completion:
            raise PromptError("the answer was cut before its first token: there is nothing to rate")
        return replace(example, completion=completion, rating=lesson.rating)

    def _said(self, text: str, cut: bool) -> tuple[int, ...]:
        """What the model answered: without an end where it was stopped."""
        completion = self._encoder.completion(text)
        return completion[:-1] if cut and self._encoder.end_id is not None else completion

    def completion_tokens(self, completion: str) -> int:
        """How many tokens a completion has; refuse one that cannot be encoded."""
        return len(self._encoder.completion(completion))

    def token_text(self, token_id: int) -> str:
        """The text of one token inside a text, as far as one token alone has one."""
        decode = self._encoder.tokenizer.decode
        # Decoders strip the space that begins a text, and a token's own space would go with it.
        once, twice = str(decode([token_id])), str(decode([token_id, token_id]))
        return twice[len(once) :]


def _chars(messages: Sequence[Message]) -> int:
    return sum(len(message["content"]) for message in messages)


async def _run(chars: int, encode: Callable[[], Value]) -> Value:
    if chars <= INLINE_CHARS:
        return encode()
    return await asyncio.to_thread(encode)
