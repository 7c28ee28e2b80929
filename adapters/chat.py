"""From chat messages to tokens, with the activation point known and never searched for.

Knows a tokenizer and its chat template; knows nothing about models or sessions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import dropwhile, takewhile
from typing import Final, cast

from transformers import PreTrainedTokenizerBase

from adapters.config import AdapterError
from adapters.support import Example

Message = Mapping[str, str]
ROLES: Final = ("system", "developer", "user", "assistant", "tool")


class PromptError(AdapterError, ValueError):
    """A prompt or completion cannot be turned into tokens; the message says what to change."""


@dataclass(frozen=True)
class EncodedPrompt:
    """Tokens of a prompt: what the base alone computes, then the header the adapter starts at."""

    prefix: tuple[int, ...]
    header: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """All tokens."""
        return self.prefix + self.header


class ChatEncoder:
    """Encodes prompts and completions so that text can never become control tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Use ``tokenizer`` and, where it has one, its chat template."""
        self.tokenizer = tokenizer
        self._control = [
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special
        ]
        self.end_id = int(tokenizer.eos_token_id) if tokenizer.eos_token_id is not None else None

    def prompt(self, messages: Sequence[Message]) -> EncodedPrompt:
        """Encode a chat up to the point where the assistant speaks.

        Raises:
            PromptError: control tokens typed as text, or messages the template refuses.
        """
        if not messages:
            raise PromptError("messages is empty: send at least one")
        for index, message in enumerate(messages):
            # Templates build control tokens from the role, so it must never be free text.
            if message["role"] not in ROLES:
                raise PromptError(f"messages[{index}].role must be one of {', '.join(ROLES)}")
            self._check(message["content"], f"messages[{index}].content")
        if self.tokenizer.chat_template is None:
            if len(messages) != 1:
                raise PromptError("this model has no chat template: send one `prompt` instead")
            return self.raw(messages[0]["content"])
        body, whole = self._render(messages, False), self._render(messages, True)
        if whole[: len(body)] != body or len(whole) == len(body):
            return EncodedPrompt(whole[:-1], whole[-1:])
        return EncodedPrompt(body, whole[len(body) :])

    def assistant_header(self) -> tuple[int, ...] | None:
        """The tokens that start every answer, or None where the template gives it no tokens."""
        if self.tokenizer.chat_template is None:
            return None
        first = user_turn("a")
        later = [*first, {"role": "assistant", "content": "b"}, *user_turn("c")]
        headers = set()
        for chat in (first, later):
            body, whole = self._render(chat, False), self._render(chat, True)
            headers.add(whole[len(body) :] if whole[: len(body)] == body else ())
        header = headers.pop()
        return header if header and not headers else None

    def raw(self, text: str) -> EncodedPrompt:
        """Encode plain text without a template; the adapter starts at its last token.

        Raises:
            PromptError: empty text, or control tokens typed as text.
        """
        self._check(text, "prompt")
        ids = tuple(self.tokenizer(text)["input_ids"])
        if not ids:
            raise PromptError("the prompt is empty: send at least one character")
        return EncodedPrompt(ids[:-1], ids[-1:])

    def completion(self, text: str) -> tuple[int, ...]:
        """Encode an answer, end token included.

        Raises:
            PromptError: control tokens typed as text.
        """
        self._check(text, "completion")
        ids = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return ids if self.end_id is None else (*ids, self.end_id)

    def example(self, messages: Sequence[Message], completion: str) -> Example:
        """Encode a demonstration.

        Raises:
            PromptError: as ``prompt`` and ``completion``.
        """
        prompt = self.prompt(messages)
        return Example(prompt.prefix, prompt.header, self.completion(completion))

    def _render(self, messages: Sequence[Message], header: bool) -> tuple[int, ...]:
        try:
            ids = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=True,
                add_generation_prompt=header,
                return_dict=False,
            )
        except Exception as error:  # templates raise jinja2 errors of many kinds
            raise PromptError(
                f"the model's chat template refuses these messages: {error}"
            ) from error
        return tuple(int(token) for token in cast("list[int]", ids))

    def _check(self, text: str, place: str) -> None:
        for token in self._control:
            if token in text:
                raise PromptError(f"{place} contains the control token {token!r}: remove it")


def user_turn(text: str) -> list[dict[str, str]]:
    """``text`` as a chat of one user turn."""
    return [{"role": "user", "content": text}]


def last_turn(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> str:
    """The text of what was said last: of all of a prompt that has no control tokens.

    It lies between the last two runs of them. Some templates end a turn with a line, and begin it
    with the speaker's name as text (ChatML): neither was said.
    """
    control = _control_ids(tokenizer)
    told = list(prompt)
    while told and told[-1] not in control and not str(tokenizer.decode(told[-1:])).strip():
        told.pop()
    backwards = dropwhile(control.__contains__, reversed(told))
    turn = list(takewhile(lambda token: token not in control, backwards))[::-1]
    text = str(tokenizer.decode(turn, clean_up_tokenization_spaces=False))
    speaker, line, said = text.partition("\n")
    return said if line and speaker.strip() in ROLES else text


def tells_turns_apart(encoder: ChatEncoder) -> bool:
    """Whether ``last_turn`` finds what was said, which templates that end it with text prevent."""
    prompts = [encoder.prompt(user_turn(text)).prefix for text in ("a", "b")]
    return len({last_turn(encoder.tokenizer, prompt) for prompt in prompts}) == len(prompts)


@lru_cache(maxsize=8)
def _control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The numbers of the tokens that text can never become."""
    return frozenset(id for id, token in tokenizer.added_tokens_decoder.items() if token.special)
