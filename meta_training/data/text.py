"""One sentence as every data file holds it, whatever the original did to it.

Knows Unicode and broken encodings; knows nothing about files or sources.
"""

from __future__ import annotations

import html
import re
import unicodedata

# Control characters that are not white space, halves of characters, and invisible marks that carry
# no text: soft hyphen, zero-width space, byte order mark.
_DROPPED = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200b\ufeff\ud800-\udfff]")
_ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]*);")
# UTF-8 read as Windows-1252. Only the lead bytes that real damage has (Â, Ã, â, ðŸ): with more of
# them, honest text such as "CAFÉ…" would be "repaired" too.
_CP1252 = "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
_CONTINUATION = f"[\u0080-\u00bf{_CP1252}]"
_MOJIBAKE = re.compile(
    f"[\u00c2\u00c3]{_CONTINUATION}|\u00e2{_CONTINUATION}{{2}}|\u00f0\u0178{_CONTINUATION}{{2}}"
)
_SPLIT_PUNCTUATION = re.compile(r" +(?=[.,!?;:%)\]])|(?<=[(\[]) +")
_SPLIT_CONTRACTION = re.compile(r"(?<=\w) (n't|'(?:s|re|ve|ll|d|m))\b", re.IGNORECASE)


def clean(text: str, keep_layout: bool = False) -> str:
    """Return ``text`` in Unicode NFC with single spaces and without control characters.

    HTML entities are resolved and UTF-8 that was read as Windows-1252 is read again.
    ``keep_layout`` leaves line breaks, indentation and runs of spaces as they are.
    """
    text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
    text = _DROPPED.sub("", _MOJIBAKE.sub(_read_again, text))
    text = unicodedata.normalize("NFC", text)
    if keep_layout:
        return text.replace("\r\n", "\n").strip()
    return " ".join(text.split())


def detokenize(text: str) -> str:
    """Undo the word splitting of tokenized corpora: no space before punctuation or ``'s``."""
    return _SPLIT_CONTRACTION.sub(r"\1", _SPLIT_PUNCTUATION.sub("", text))


def has_words(text: str) -> bool:
    """Whether ``text`` has a letter or a digit in any script."""
    return any(character.isalnum() for character in text)


def decode(raw: bytes) -> str:
    """Return the text of a file: UTF-8 with or without byte order mark, else Windows-1252."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("cp1252", errors="replace")


def _read_again(match: re.Match[str]) -> str:
    # Five bytes have no character in Windows-1252; they come through as control characters.
    raw = b"".join(
        bytes([ord(character)]) if ord(character) < 256 else character.encode("cp1252")
        for character in match[0]
    )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return match[0]
