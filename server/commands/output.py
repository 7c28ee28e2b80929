"""What commands print: JSON for machines, short lines for people."""

import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def emit(document: Any) -> None:
    """Print one JSON document, in one line."""
    print(json.dumps(document, ensure_ascii=False), flush=True)


def shown(text: str, stream: TextIO | None = None) -> str:
    """Text from a model, safe for a terminal: it could hold sequences that a terminal obeys."""
    stream = sys.stdout if stream is None else stream
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text) if stream.isatty() else text


def note(text: str) -> None:
    """Tell people something that is no result."""
    print(text, file=sys.stderr, flush=True)


def when(seconds: float | None) -> str:
    """A Unix time for people, in their own time zone."""
    if not seconds:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows in columns as wide as they have to be."""
    texts = [list(head), *([shown(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(head))]
    for row in texts:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def losses(found: Mapping[str, Any]) -> str:
    """The loss on feedback before and after it was learned.

    Empty where there is none, as of feedback that only says what not to answer.
    """
    before, after = found.get("loss_before"), found.get("loss_after")
    return "" if before is None or after is None else f"{before:.3f} -> {after:.3f}"


def lesson_line(found: Mapping[str, Any]) -> str:
    """What became of feedback, in a line."""
    if found.get("waiting"):
        return f"waiting: {found['reason']}"
    if not found["accepted"]:
        return f"refused: {found.get('reason') or 'no reason given'}"
    count = found["examples_used"]
    noun = "example" if count == 1 else "examples"
    told = [f"learned from {count} {noun} in {found['steps']} steps"]
    if found.get("duration_ms") is not None:
        told[0] += f" and {found['duration_ms'] / 1000:.2f} s"
    if moved := losses(found):
        told.append(f"loss {moved} nats a token")
    return ", ".join([*told, f"now version {found['adapter_version']}"])
