"""Texts to tokens, off the event loop where that takes long. Knows no session and no engine."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from adapters.chat import ChatEncoder, EncodedPrompt, Message
from adapters.inner_loop import Example

INLINE_CHARS = 4_000
"""Tokenizing this much takes about a millisecond; a thread's hand-over costs a tenth of that."""

Value = TypeVar("Value")


class Encoding:
    """Encodes for an event loop. Every call raises PromptError as `ChatEncoder` does."""

    def __init__(self, encoder: ChatEncoder) -> None:
        self._encoder = encoder

    async def prompt(self, messages: Sequence[Message]) -> EncodedPrompt:
        """Encode a chat up to where the assistant speaks."""
        return await _run(_chars(messages), lambda: self._encoder.prompt(messages))

    async def example(self, messages: Sequence[Message], completion: str) -> Example:
        """Encode a demonstration."""
        chars = _chars(messages) + len(completion)
        return await _run(chars, lambda: self._encoder.example(messages, completion))

    def check_completion(self, completion: str) -> None:
        """Refuse a completion that cannot be encoded."""
        self._encoder.completion(completion)

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
