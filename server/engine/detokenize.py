"""From tokens that come one by one to text that can be shown.

Knows a tokenizer's ``decode`` and texts to stop at; knows nothing about models or requests. What
is shown piece by piece is, put together, what decoding all tokens at once gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from transformers import PreTrainedTokenizerBase

_CONTEXT_TOKENS: Final = 16
_INCOMPLETE: Final = "\ufffd"  # what decoders write where a character's bytes are not complete


class Detokenizer:
    """Text of a growing token sequence, complete characters only.

    Decodes each new token together with some before it whose text is already out, and gives the
    difference: a tokenizer that strips the sequence's leading space, or that joins tokens by
    spaces, then strips and joins as it does for the whole.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, said: Sequence[int] = ()) -> None:
        """Start with no tokens, or behind tokens whose text was ``said`` already."""
        self._tokenizer = tokenizer
        self._context = list(said[-_CONTEXT_TOKENS:])  # text is out; kept for what follows it
        self._fresh: list[int] = []  # text is not out
        self._shown = self._decode(self._context)  # the context's own text

    def push(self, token: int) -> str:
        """Take one token and return the text that became complete, possibly none."""
        self._fresh.append(token)
        text = self._decode(self._context + self._fresh)
        if text.endswith(_INCOMPLETE) or text == self._shown:
            return ""
        piece = text[len(self._shown) :]
        if len(self._context) < _CONTEXT_TOKENS:
            self._context, self._shown = self._context + self._fresh, text
        else:  # start again, so that decoding stays short
            self._context, self._shown = self._fresh, self._decode(self._fresh)
        self._fresh = []
        return piece

    def flush(self) -> str:
        """Return what was held back; no more tokens come."""
        piece = self._decode(self._context + self._fresh)[len(self._shown) :]
        self._context, self._fresh, self._shown = [], [], ""
        return piece

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text


class StopFilter:
    """Lets text through up to the first stop text, wherever the borders between pieces lie."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Stop at any of ``stops``, none of them empty."""
        self._stops = tuple(stops)
        self._held = ""  # may be the beginning of a stop text

    def push(self, text: str) -> tuple[str, bool]:
        """Take a piece of text.

        Returns:
            The text that can be shown, and whether a stop text was found after it. The stop text
            and what follows it are never shown.
        """
        text = self._held + text
        starts = [(text.find(stop), len(stop)) for stop in self._stops]
        found = [(start + length, start) for start, length in starts if start >= 0]
        if found:
            self._held = ""
            _, start = min(found)  # the first to be complete, however the pieces were cut
            return text[:start], True
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        border = len(text) - keep
        self._held = text[border:]
        return text[:border], False

    def flush(self) -> str:
        """Return what was held back; no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
