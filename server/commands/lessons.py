"""Examples out of JSON Lines, every wrong line with its number."""

import json
from dataclasses import dataclass
from typing import Any

from innerloop import Example, Preference
from innerloop.types import Prompt

FIELDS = frozenset({"prompt", "messages", "completion", "chosen", "rejected"})
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Line:
    """An example and where it stood."""

    number: int
    lesson: Example | Preference


def read_lines(content: bytes) -> tuple[list[Line], list[tuple[int, str]]]:
    """The examples, and the numbers of wrong lines with what is wrong; empty lines are neither."""
    lines, errors = [], []
    # Not splitlines: JSON may hold other characters that end lines for Unicode.
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not raw.strip():
            continue
        try:
            lines.append(Line(number, _lesson(raw)))
        except ValueError as error:
            errors.append((number, str(error)))
    return lines, errors


def _lesson(raw: bytes) -> Example | Preference:
    try:
        found = json.loads(raw)
    except UnicodeDecodeError as error:
        raise ValueError("this is not UTF-8") from error
    except RecursionError as error:
        raise ValueError("this is nested too deep") from error
    except ValueError as error:
        raise ValueError(f"this is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError("expected an object")
    if unknown := sorted(found.keys() - FIELDS):
        raise ValueError(f"there is no field {unknown[0]!r}: {', '.join(sorted(FIELDS))}")
    prompt = _prompt(found)
    pair = [name in found for name in ("chosen", "rejected")]
    if ("completion" in found) is any(pair) or any(pair) is not all(pair):
        raise ValueError("expected either `completion`, or `chosen` and `rejected`")
    if all(pair):
        return Preference(prompt, _text(found, "chosen"), _text(found, "rejected"))
    return Example(prompt, _text(found, "completion"))


def _prompt(found: dict[str, Any]) -> Prompt:
    if ("prompt" in found) == ("messages" in found):
        raise ValueError("expected either `prompt` or `messages`")
    if "prompt" in found:
        return _text(found, "prompt")
    messages = found["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError("`messages` must be a list of turns")
    for turn in messages:
        if not isinstance(turn, dict) or turn.keys() != {"role", "content"}:
            raise ValueError("every turn of `messages` has a `role` and a `content`")
        if turn["role"] not in ROLES or not isinstance(turn["content"], str):
            raise ValueError(f"a turn's `role` is one of {', '.join(ROLES)}, its `content` a text")
    if messages[-1]["role"] != "user":
        raise ValueError("the last of `messages` must have the role user")
    return messages


def _text(found: dict[str, Any], name: str) -> str:
    text = found[name]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"`{name}` must be a text that is not blank")
    return text
