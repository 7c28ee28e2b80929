"""Reads prepared text files (see ``innerloop data``): intents, dialogues, personas, FAQs.

Knows the files' form and what is held out; knows nothing about tokens, episodes or models.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meta_training.data.sources import load_sources

INTENT_FILES = (
    "clinc150.jsonl",
    "multidogo.jsonl",
    "natcs-intents.jsonl",
    "hint3.jsonl",
    "bitext-support.jsonl",
    "sgd-intents.jsonl.gz",
    "snips.jsonl",
    "rasa-nlu.jsonl",
    "botframework-en.jsonl",
)
DIALOGUE_FILES = (
    "dialogues-sgd.jsonl.gz",
    "dialogues-star.jsonl.gz",
    "dialogues-taskmaster4.jsonl.gz",
    "dialogues-multiwoz.jsonl.gz",
    "dialogues-woz2.jsonl.gz",
    "dialogues-camrest.jsonl.gz",
    "dialogues-topicalchat.jsonl.gz",
)
MINIMUM_QUESTIONS = 8  # of an intent: fewer cannot be support and queries
UTF8 = "utf-8-sig"  # with or without the mark that spreadsheets put first
ROLES = ("system", "user", "assistant")
# Labels that gather leftovers: their questions have nothing in common that could be taught.
CATCH_ALL = frozenset({"oos", "contentonly", "outofdomain", "inform", "Undefined", "None"})


class DataError(ValueError):
    """A data file cannot be used; the message names file, line and field."""


@dataclass(frozen=True)
class Intent:
    """One intent: differently worded questions that want the same answer.

    ``family``: of the episodes that it is for alone; without one it is for labels, and for replies.
    """

    source: str
    domain: str
    name: str
    questions: tuple[str, ...]
    answer: str | None = None
    family: str = ""


@dataclass(frozen=True)
class Pair:
    """A prompt and its answer, what the answer is preferred to, and a pattern that it follows."""

    prompt: str
    completion: str
    rejected: str = ""
    pattern: str = ""  # a regular expression that whole answers match


@dataclass(frozen=True)
class PairTask:
    """One task of a family: pairs that have a rule, a style, a language or a domain in common."""

    family: str
    source: str
    name: str
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Dialogue:
    """One dialogue as (role, text) turns."""

    source: str
    split: str | None
    turns: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class PersonaGroup:
    """Wordings of one question, with each persona's answer to it."""

    group: str
    questions: tuple[str, ...]
    answers: tuple[tuple[str, str], ...]


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a ``.jsonl`` or ``.jsonl.gz`` file; empty lines may end it.

    Raises:
        DataError: the file is missing, damaged or not UTF-8, or a line is not a JSON object; names
            file and line.
    """
    check_there(path)
    opener = gzip.open if path.suffix == ".gz" else open
    lines: list[str] = []  # all of them: whoever stops in the middle leaves no file open
    try:
        with opener(path, "rt", encoding=UTF8) as file:
            for line in file:  # one by one, to know where it breaks
                lines.append(line)
    except UnicodeDecodeError as error:
        raise not_utf8(path, len(lines) + 1, error) from error
    except (OSError, EOFError, zlib.error) as error:
        again = f"; {_again(path)}" if _is_public(path) else ""
        raise DataError(f"{path}:{len(lines) + 1}: cannot be read: {error}{again}") from error
    empty = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            empty = empty or number
        elif empty:
            raise DataError(f"{path}:{empty}: an empty line, and more below it: remove it")
        else:
            yield _row(line, path, number)


def check_there(path: Path) -> None:
    """Refuse a file that is not there.

    Raises:
        DataError: it is missing; says how to get it where `innerloop data` makes such a file.
    """
    if not path.is_file():
        make = f"run `innerloop data --target {path.parent}` first, or " if _is_public(path) else ""
        raise DataError(f"{path} is missing: {make}give --data the folder that has it")


def not_utf8(path: Path, number: int, error: UnicodeDecodeError) -> DataError:
    """What to raise for a file with other bytes at line ``number`` or below."""
    what = _again(path) if _is_public(path) else "save the file as UTF-8"
    return DataError(f"{path}:{number} or below: is not UTF-8 ({error}): {what}")


def _is_public(path: Path) -> bool:
    return any(source.file == path.name for source in load_sources())


def _again(path: Path) -> str:
    return f"fetch it again with `innerloop data --force --target {path.parent}`"


def _row(line: str, path: Path, number: int) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON value")

    try:
        row = json.loads(line, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{number}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}:{number}: expected an object, found {type(row).__name__}")
    return row


def field(row: dict[str, Any], name: str, path: Path, number: int) -> str:
    """Return a text field of a row.

    Raises:
        DataError: the field is missing or not text; names file, line and field.
    """
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{path}:{number}: field {name!r} must be non-empty text, found {value!r}")
    return value


def load_intents(
    path: Path, minimum_questions: int = MINIMUM_QUESTIONS, longest_words: int = 22
) -> list[Intent]:
    """Group a labelled-utterance file into intents with at least ``minimum_questions`` wordings.

    Questions of more than ``longest_words`` words are left out: one of them sets the padded width
    of a whole batch.

    Raises:
        DataError: a row lacks ``text``, ``intent`` or ``domain``.
    """
    questions: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    answers: dict[tuple[str, str], str] = {}
    for number, row in enumerate(read_rows(path), 1):
        if row.get("lang", "en") != "en":
            continue
        key = (field(row, "domain", path, number), field(row, "intent", path, number))
        text = field(row, "text", path, number)
        if len(text.split()) <= longest_words:
            questions[key][text] = None
        if "answer" in row:
            answers[key] = field(row, "answer", path, number)
    source = path.name.split(".")[0]
    return [
        Intent(source, domain, name, tuple(texts), answers.get((domain, name)))
        for (domain, name), texts in sorted(questions.items())
        if len(texts) >= minimum_questions and name not in CATCH_ALL
    ]


def load_dialogues(path: Path) -> list[Dialogue]:
    """Read a dialogue file; turns without text are left out.

    Raises:
        DataError: a row has no ``turns``, or a turn has no ``role`` or ``text``.
    """
    dialogues = []
    for number, row in enumerate(read_rows(path), 1):
        turns = dialogue_turns(row, path, number)
        dialogues.append(Dialogue(row.get("source", path.name), row.get("split"), turns))
    return dialogues


def dialogue_turns(row: dict[str, Any], path: Path, number: int) -> tuple[tuple[str, str], ...]:
    """The (role, text) turns of a row that have text.

    Raises:
        DataError: as of ``load_dialogues``.
    """
    turns = row.get("turns")
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{path}:{number}: field 'turns' must be a non-empty list")
    read = (_turn(turn, path, number) for turn in turns)
    pairs = tuple((role, text) for role, text in read if text.strip())
    if not pairs:
        raise DataError(f"{path}:{number}: field 'turns' has no turn with text")
    return pairs


def _turn(turn: object, path: Path, number: int) -> tuple[str, str]:
    if not isinstance(turn, dict) or not isinstance(turn.get("text"), str):
        raise DataError(
            f"{path}:{number}: field 'turns' must hold objects with 'role' and 'text', "
            f"found {turn!r}"
        )
    if turn.get("role") not in ROLES:
        raise DataError(
            f"{path}:{number}: field 'role' must be one of {', '.join(ROLES)}, "
            f"found {turn.get('role')!r}"
        )
    return turn["role"], turn["text"]


def load_personas(path: Path) -> list[PersonaGroup]:
    """Read a ``style-chitchat`` file into groups of wordings with one answer per persona.

    Raises:
        DataError: a row lacks ``group``, ``query`` or ``responses``.
    """
    questions: dict[str, dict[str, None]] = defaultdict(dict)
    answers: dict[str, dict[str, str]] = {}
    for number, row in enumerate(read_rows(path), 1):
        if row.get("group") is None:
            raise DataError(f"{path}:{number}: field 'group' is missing")
        group = str(row["group"])
        questions[group][field(row, "query", path, number)] = None
        responses = row.get("responses")
        if not isinstance(responses, dict) or not responses:
            raise DataError(f"{path}:{number}: field 'responses' must map personas to answers")
        answers.setdefault(
            group, {name: field(responses, name, path, number) for name in responses}
        )
    return [
        PersonaGroup(group, tuple(texts), tuple(sorted(answers[group].items())))
        for group, texts in questions.items()
    ]


def load_faq_answers(path: Path, split: str) -> list[str]:
    """Answers of ``faq-dstc9`` in one split, without repeats.

    Raises:
        DataError: a row lacks ``answer``.
    """
    answers = [
        field(row, "answer", path, number)
        for number, row in enumerate(read_rows(path), 1)
        if row.get("split") == split
    ]
    return list(dict.fromkeys(answers))
