"""Labelled utterances from marked-up text: Rasa YAML, LUDown, CoNLL and Home Assistant's tests.

Knows these notations; knows nothing about repeats or writing (``convert.py``).
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from meta_training.data.rows import Row, utterance
from meta_training.data.text import decode, detokenize

HOME_ASSISTANT_PER_KIND = 12
HOME_ASSISTANT_MIN_INTENTS = 8
BOTFRAMEWORK_FOLDER = (
    "samples/csharp/assistants/virtual-assistant/VirtualAssistantSample/Deployment/Resources"
)
XSID_SPLITS = (("valid", "val"), ("test", "test"))
XSID_BOKMAL = "B"
_RASA_ENTITY = re.compile(r"\[([^\]]+)\](?:\([^)]*\)|\{[^}]*\})")
# The innermost mark first; a mark without a value is a pattern.
_LU_ENTITY = re.compile(r"\{@?[\w.]+(?::[\w.]+)? ?= ?([^{}]*)\}")
_LU_PATTERN = re.compile(r"[{}\[\]|]|\(.*\|.*\)")
_CONLL_COMMENT = re.compile(r"^# *(id|text|intent|dialect) *[=:] *(.*)", re.MULTILINE)


def read_yaml(path: Path) -> Any:
    """Return the contents of a YAML file, with the C reader where PyYAML has it."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(decode(path.read_bytes()), Loader=loader)


def sample(rows: Sequence[Row], size: int, field: str) -> list[Row]:
    """Return ``size`` of ``rows`` in their order: those whose ``field`` has the smallest hash.

    Unlike a seeded draw this depends on no other row, so one more row changes at most one.
    """
    hashes = [hashlib.sha256(row[field].encode()).digest() for row in rows]
    chosen = sorted(range(len(rows)), key=hashes.__getitem__)[:size]
    return [rows[index] for index in sorted(chosen)]


def rasa(helpdesk: Path, financial: Path, training: Path) -> Iterator[Row]:
    """Rasa NLU 2.0: ``nlu: [{intent, examples: "- one\\n- two"}]``, entity marks removed."""
    parts = [
        (helpdesk / "data/nlu.yml", "helpdesk"),
        (financial / "data/nlu/nlu.yml", "retail_bank"),
    ]
    for path in sorted(training.glob("*/nlu.yml")):
        parts.append((path, path.parent.name.replace("-", "_")))
    for path, domain in parts:
        for entry in read_yaml(path)["nlu"]:
            if "intent" not in entry:
                continue  # synonyms, lookups and regular expressions
            for line in entry["examples"].splitlines():
                text = _RASA_ENTITY.sub(r"\1", line.strip().removeprefix("-"))
                yield utterance(text, entry["intent"], domain, "train")


def botframework(root: Path) -> Iterator[Row]:
    """LUDown: ``## Intent`` and ``- utterance``, entity marks replaced by their values."""
    folder = root / BOTFRAMEWORK_FOLDER
    for path in sorted(folder.rglob("en-us/*.lu")):
        names = [part.lower() for part in path.relative_to(folder).parts]
        skill = next((name for name in names if name.endswith("skill")), "general")
        domain = skill.removesuffix("skill")
        for intent, text in _ludown(decode(path.read_bytes()).splitlines()):
            yield utterance(text, intent, domain, "train")


def _ludown(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    intent = None
    for line in (line.strip() for line in lines):
        if line.startswith(("@", "$")):
            intent = None  # lines below an entity are its values
        elif line.startswith("#"):
            heading = line.lstrip("#").strip()
            intent = None if heading.startswith("?") else heading
        elif line.startswith(("- ", "* ")) and intent:
            text, found = line[2:], 1
            while found:
                text, found = _LU_ENTITY.subn(r"\1", text)
            if not _LU_PATTERN.search(text):
                yield intent, text


def xsid(root: Path) -> Iterator[Row]:
    """xSID: CoNLL blocks with ``# text`` and ``# intent``; ``pid`` joins the translations.

    The Norwegian files hold each sentence in many dialects; only Bokmål is taken.
    """
    for name, split in XSID_SPLITS:
        for path in sorted((root / "data/xSID-0.7").glob(f"*.{name}.conll")):
            language = path.name.split(".")[0]
            blocks = re.split(r"\n\s*\n", decode(path.read_bytes()).strip())
            for index, block in enumerate(blocks, 1):
                marks = dict(_CONLL_COMMENT.findall(block))
                if marks.get("dialect", XSID_BOKMAL) == XSID_BOKMAL:
                    number = marks.get("id", str(index)).split("/")[0]
                    yield _xsid_row(marks, "nb" if language == "no" else language, split, number)


def _xsid_row(marks: Mapping[str, str], language: str, split: str, number: str) -> Row:
    # All but the Chinese texts, whose words are split as well, are tokenized only at punctuation.
    text = marks["text"] if language == "zh" else detokenize(marks["text"])
    more = {"lang": language, "pid": f"{split}-{number}"}
    return utterance(text, marks["intent"], "voice_assistant", split, **more)


def home_assistant(root: Path) -> Iterator[Row]:
    """Home Assistant's sentence tests, at most 12 of a language, intent and device type."""
    for folder in sorted(path for path in (root / "tests").iterdir() if path.is_dir()):
        kinds: dict[tuple[str, str], list[Row]] = defaultdict(list)
        seen: set[tuple[str, ...]] = set()
        for path in sorted(folder.glob("*_Hass*.yaml")):
            for row in _home_assistant_file(path):
                key = (row["text"], row["intent"], row["domain"])
                if key not in seen:
                    seen.add(key)
                    kinds[row["intent"], row["domain"]].append(row)
        if len({intent for intent, _ in kinds}) >= HOME_ASSISTANT_MIN_INTENTS:
            for rows in kinds.values():
                yield from sample(rows, HOME_ASSISTANT_PER_KIND, "text")


def _home_assistant_file(path: Path) -> Iterator[Row]:
    """``light_HassTurnOn.yaml``: the device type, then the intent."""
    domain, language = path.name.split("_Hass")[0], path.parent.name
    for test in read_yaml(path)["tests"]:
        for text in map(str, test["sentences"]):
            yield utterance(text, test["intent"]["name"], domain, "train", lang=language)
