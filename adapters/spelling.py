"""A text as numbered buckets: its words and the pieces of them, so that kin words share some.

Shipped, shipping and a mistyped one have three and four letters in a row in common (subwords,
Bojanowski et al. 2017, arXiv 1607.04606), which no vocabulary of tokens promises. Buckets are
numbered by a hash (Weinberger et al. 2009, arXiv 0902.2206), so there is no list of words either.
Knows texts only.
"""

from __future__ import annotations

import re
import zlib
from functools import lru_cache
from typing import Final

BUCKETS: Final = 2**14
PIECES: Final = (3, 4)  # letters in a row, a word's two ends counted as letters
_WORD: Final = re.compile(r"\w+|[^\w\s]")


def words_of(text: str) -> list[str]:
    """Its words and signs in small letters, in their order."""
    return _WORD.findall(text.lower())


def buckets_of(text: str) -> list[int]:
    """Numbers below ``BUCKETS`` of every word and piece of a word, each as often as it occurs."""
    return [bucket for word in words_of(text) for bucket in _buckets(word)]


def bucket_of_word(word: str) -> int:
    """The bucket of a word as a whole."""
    return zlib.crc32(f"w{word}".encode()) % BUCKETS


@lru_cache(maxsize=65536)
def _buckets(word: str) -> tuple[int, ...]:
    framed = f"<{word}>"
    pieces = [framed[i : i + n] for n in PIECES for i in range(len(framed) - n + 1)]
    kept = [f"c{piece}" for piece in pieces if piece != framed]
    return (bucket_of_word(word), *(zlib.crc32(piece.encode()) % BUCKETS for piece in kept))
