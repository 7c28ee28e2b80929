"""The rows of the data files, and the files themselves: JSON lines, plain or gzip.

Knows the documented row forms and how to write and hash them; knows nothing about where rows come
from. A file's identity is the SHA-256 of its lines before compression, so that another version of
zlib does not make another file of it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from meta_training.data.errors import ChecksumError
from meta_training.data.text import clean

Row = dict[str, Any]
Form = Literal["utterances", "dialogues", "chitchat", "personality", "faq", "instructions"]
Turn = tuple[str, str]

# Two rows of a form are the same row when these fields are equal.
IDENTITY: dict[Form, tuple[str, ...]] = {
    "utterances": ("text", "intent", "domain", "lang"),
    "dialogues": ("turns",),
    "chitchat": ("query", "lang"),
    "personality": ("query", "scenario", "style", "response", "kind"),
    "faq": ("domain", "entity", "question", "answer"),
    "instructions": ("instruction", "input", "output"),
}
_SPLIT_RANK = {"test": 0, "val": 1, "train": 2}


@dataclass(frozen=True)
class Contents:
    """What a data file holds: number of rows, and SHA-256 (hex) of its uncompressed lines."""

    rows: int
    sha256: str


def utterance(text: str, intent: str, domain: str, split: str, **more: str) -> Row:
    """Return a labelled utterance; ``more`` adds ``lang`` and ``pid``."""
    row = {"text": clean(text), "intent": clean(intent), "domain": clean(domain), "split": split}
    return {**row, **more}


def dialogue(
    name: str,
    source: str,
    domain: str | None,
    split: str | None,
    turns: Iterable[Turn],
    **more: Any,
) -> Row | None:
    """Return a dialogue of (role, text) ``turns``, or None where only one side speaks.

    Turns of one speaker in a row are joined, and what the assistant says before the user's first
    turn is dropped, because chat templates begin with the user.
    """
    joined: list[dict[str, str]] = []
    for role, text in ((role, clean(text)) for role, text in turns):
        if not text or (not joined and role != "user"):
            continue
        if joined and joined[-1]["role"] == role:
            joined[-1]["text"] += " " + text
        else:
            joined.append({"role": role, "text": text})
    if len(joined) < 2:
        return None
    head = {"id": name, "source": source, "domain": domain, "split": split}
    return {**head, **more, "turns": joined}


def distinct(rows: Iterable[Row], fields: Sequence[str]) -> list[Row]:
    """Return ``rows`` in their order without repeats of ``fields``.

    Of equal rows in several splits the copy in test is kept before val before train, so that no
    training text is also a test text; within a split the first is kept.
    """
    kept: dict[str, tuple[int, int, Row]] = {}
    for index, row in enumerate(rows):
        key = json.dumps([row.get(field) for field in fields], ensure_ascii=False)
        rank = _SPLIT_RANK.get(row.get("split") or "", 3)
        if key not in kept or rank < kept[key][0]:
            kept[key] = (rank, index, row)
    return [row for _, _, row in sorted(kept.values(), key=lambda entry: entry[1])]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to, and put that file in place of ``path`` only when all went well."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_rows(path: Path, rows: Iterable[Row]) -> Contents:
    """Write ``rows`` to ``path`` (gzip where it ends in .gz), whole or not at all.

    Raises:
        OSError: the disk is full or the folder not writable.
    """
    digest, count = hashlib.sha256(), 0
    with replacing(path) as partial, open(partial, "wb") as raw:
        with _compressed(raw, path) as file:
            for row in rows:
                line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
                digest.update(line)
                file.write(line)
                count += 1
        raw.flush()
        os.fsync(raw.fileno())
    return Contents(count, digest.hexdigest())


def read_contents(path: Path) -> Contents:
    """Count and hash the lines of a data file.

    Raises:
        ChecksumError: the file is missing or its compression is damaged; names the file.
    """
    digest, count = hashlib.sha256(), 0
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                count += block.count(b"\n")
    except FileNotFoundError as error:
        raise ChecksumError(f"{path} is missing") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ChecksumError(f"{path} is damaged ({error}): get it again") from error
    return Contents(count, digest.hexdigest())


@contextmanager
def _compressed(raw: IO[bytes], path: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
    if path.suffix == ".gz":
        # No name and no time inside, so that the same rows give the same bytes.
        with gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
            yield file
    else:
        yield raw
