"""Tasks that differ in the form of an answer: as JSON, in capitals, in few words, signed.

Each rule is a task of its own, with a pattern that says whether an answer follows it, whatever it
says. Knows texts only.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence

from meta_training.tasks.sources import Pair

KEYS = ("answer", "reply", "text", "say", "message", "response", "value", "result", "note", "out")
OPENINGS = ("Note:", "Answer -", "Well,", "Dear customer,", "FYI:", "Hello!", ">>", "Re:")
CLOSINGS = ("Bye!", "Over and out.", "- the team", "(end)", "Have a nice day!", "***", "#help")
WORDS = (2, 3, 4, 5)
TAGS = ("b", "p", "say", "em", "li", "q")
PAIRS = 60  # of a rule, at most

Rule = Callable[[str], str]


def format_tasks(said: Sequence[tuple[str, str]], seed: int) -> dict[str, list[Pair]]:
    """The same prompts and answers in every form: task -> pairs.

    The instruction is nowhere in the prompt; only the examples show the form.
    """
    rng = random.Random(f"{seed}/formats")
    tasks = {}
    for name, rule, pattern in _rules():
        drawn = rng.sample(said, min(PAIRS, len(said)))
        tasks[name] = [Pair(prompt, rule(answer), "", pattern) for prompt, answer in drawn]
    return tasks


def _rules() -> Iterator[tuple[str, Rule, str]]:
    for key in KEYS:
        yield f"JSON, {key}", _json(key), rf'\{{"{key}": ".*"\}}'
    for opening in OPENINGS:
        yield f"begins {opening}", _around(f"{opening} ", ""), rf"{re.escape(opening)} .+"
    for closing in CLOSINGS:
        yield f"ends {closing}", _around("", f" {closing}"), rf".+ {re.escape(closing)}"
    for tag in TAGS:
        yield f"tag {tag}", _around(f"<{tag}>", f"</{tag}>"), rf"<{tag}>.*</{tag}>"
    for count in WORDS:
        yield f"{count} words", _first(count), rf"\S+(?: \S+){{0,{count - 1}}}"
    yield "capitals", str.upper, r"[^a-z]*[A-Z][^a-z]*"
    yield "no capitals", str.lower, r"[^A-Z]*[a-z][^A-Z]*"
    yield "quoted", _around("“", "”"), r"“.*”"
    yield "words by commas", _commas, r"\S+(?:, \S+)*"


def _json(key: str) -> Rule:
    return lambda answer: json.dumps({key: answer}, ensure_ascii=False)


def _around(before: str, after: str) -> Rule:
    return lambda answer: before + answer + after


def _first(count: int) -> Rule:
    return lambda answer: " ".join(answer.split()[:count])


def _commas(answer: str) -> str:
    return ", ".join(word.strip(",") for word in answer.split())
