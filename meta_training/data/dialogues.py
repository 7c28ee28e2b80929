"""Dialogues between a user and an assistant: one small reader for each public form.

Knows the originals' keys and who speaks; knows nothing about repeats or writing (``convert.py``).
Readers may yield None for a dialogue in which only one side speaks.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from meta_training.data.intents import read_json
from meta_training.data.rows import Row, Turn, dialogue, utterance
from meta_training.data.text import decode, detokenize

SGD_SPLITS = (("train", "train"), ("dev", "val"), ("test", "test"))
WOZ_SPLITS = (("train", "train"), ("validate", "val"), ("test", "test"))
MULTIWOZ_DOMAINS = (
    "attraction",
    "bus",
    "hospital",
    "hotel",
    "police",
    "restaurant",
    "taxi",
    "train",
)
CROSSWOZ_DOMAINS = {
    "景点": "attraction",
    "酒店": "hotel",
    "地铁": "metro",
    "餐馆": "restaurant",
    "出租": "taxi",
}
STAR_SPEAKERS = {"User": "user", "Wizard": "assistant"}


def read_zipped_json(path: Path) -> Any:
    """Return the contents of the one JSON file in a zip."""
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if Path(name).suffix == ".json")
        return json.loads(decode(archive.read(name)))


def _joined(domains: Iterable[str]) -> str | None:
    return "+".join(sorted(set(domains))) or None


def _sgd_domain(service: str) -> str:
    return service.split("_")[0].lower()


def _sgd_dialogues(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for folder, split in SGD_SPLITS:
        for path in sorted((root / folder).glob("dialogues_*.json")):
            for record in read_json(path):
                yield split, record


def sgd(root: Path) -> Iterator[Row | None]:
    """SGD: ``[{"dialogue_id", "services", "turns": [{"speaker", "utterance"}, ...]}, ...]``."""
    for split, record in _sgd_dialogues(root):
        turns = (
            ("user" if turn["speaker"] == "USER" else "assistant", turn["utterance"])
            for turn in record["turns"]
        )
        domain = _joined(map(_sgd_domain, record["services"]))
        yield dialogue(f"sgd-{split}-{record['dialogue_id']}", "sgd", domain, split, turns)


def sgd_intents(root: Path) -> Iterator[Row]:
    """User turns of Schema-Guided Dialogue with exactly one INFORM_INTENT action."""
    for split, record in _sgd_dialogues(root):
        for turn in record["turns"]:
            stated = [
                (frame["service"], action["values"][0])
                for frame in turn["frames"]
                for action in frame["actions"]
                if turn["speaker"] == "USER" and action["act"] == "INFORM_INTENT"
            ]
            if len(stated) == 1:
                service, intent = stated[0]
                yield utterance(turn["utterance"], intent, _sgd_domain(service), split)


def star(root: Path) -> Iterator[Row | None]:
    """STAR: a file a dialogue, ``Events`` of user and wizard; only completed dialogues."""
    for path in sorted(root.glob("dialogues/*.json"), key=lambda path: int(path.stem)):
        record = read_json(path)
        if record["CompletionLevel"] != "Complete":
            continue
        turns = (
            (STAR_SPEAKERS[event["Agent"]], event["Text"])
            for event in record["Events"]
            if event["Agent"] in STAR_SPEAKERS and event["Action"] in ("utter", "pick_suggestion")
        )
        scenario = record["Scenario"]
        tasks = sorted({part["Task"] for part in scenario["WizardCapabilities"]})
        name, domain = f"star-{record['DialogueID']}", _joined(scenario["Domains"])
        yield dialogue(name, "star", domain, None, turns, tasks=tasks, happy=scenario["Happy"])


def taskmaster4(root: Path) -> Iterator[Row | None]:
    """Taskmaster-4: ``[{"conversation_id", "utterances": [{"speaker", "text"}]}]``."""
    for path in sorted(root.glob("TM-4-2024/data/data_*.json")):
        for record in read_json(path):
            turns = ((turn["speaker"].lower(), turn["text"]) for turn in record["utterances"])
            name = record["conversation_id"]
            yield dialogue(name, "taskmaster4", "coffee_ordering", None, turns)


def multiwoz(root: Path) -> Iterator[Row | None]:
    """MultiWOZ 2.1: ``{"PMUL1.json": {"goal", "log": [{"text"}]}}``, user first, tokenized."""
    for split in ("val", "test"):
        for key, record in read_zipped_json(root / f"data/multiwoz/{split}.json.zip").items():
            turns = (
                ("assistant" if index % 2 else "user", detokenize(entry["text"]))
                for index, entry in enumerate(record["log"])
            )
            domain = _joined(name for name in MULTIWOZ_DOMAINS if record["goal"].get(name))
            name = f"multiwoz-{key.removesuffix('.json')}"
            yield dialogue(name, "multiwoz2.1", domain, split, turns)


def crosswoz(root: Path) -> Iterator[Row | None]:
    """CrossWOZ: ``{id: {"goal": [[n, domain, ...], ...], "messages": [...]}}``, in Chinese."""
    for split in ("val", "test"):
        for key, record in read_zipped_json(root / f"data/crosswoz/{split}.json.zip").items():
            turns = (
                ("user" if message["role"] == "usr" else "assistant", message["content"])
                for message in record["messages"]
            )
            domain = _joined(CROSSWOZ_DOMAINS[goal[1]] for goal in record["goal"])
            yield dialogue(f"crosswoz-{key}", "crosswoz", domain, split, turns, lang="zh")


def woz2(root: Path) -> Iterator[Row | None]:
    """WOZ 2.0: in each turn ``system_transcript`` comes before the user's ``transcript``."""
    for part, split in WOZ_SPLITS:
        for record in read_json(root / f"data/woz/woz_{part}_en.json"):
            turns: list[Turn] = []
            for turn in record["dialogue"]:
                turns.append(("assistant", turn["system_transcript"]))
                turns.append(("user", turn["transcript"]))
            name = f"woz-en-{record['dialogue_idx']}"
            yield dialogue(name, "woz2.0", "restaurant", split, turns, lang="en")


def camrest(root: Path) -> Iterator[Row | None]:
    """CamRest676: ``[{"dialogue_id", "dial": [{"usr": {"transcript"}, "sys": {"sent"}}]}]``."""
    for split in ("train", "val", "test"):
        for record in read_zipped_json(root / f"data/camrest/{split}.json.zip"):
            turns: list[Turn] = []
            for turn in record["dial"]:
                turns.append(("user", turn["usr"]["transcript"]))
                turns.append(("assistant", turn["sys"]["sent"]))
            name = f"camrest-{record['dialogue_id']}"
            yield dialogue(name, "camrest676", "restaurant", split, turns)


def topicalchat(root: Path) -> Iterator[Row | None]:
    """Topical-Chat: ``{id: {"content": [{"message", "agent"}]}}``; agent_1 is the user."""
    for part, split in (("valid", "val"), ("test", "test")):
        for kind in ("freq", "rare"):
            for key, record in read_json(root / f"conversations/{part}_{kind}.json").items():
                turns = (
                    ("user" if turn["agent"] == "agent_1" else "assistant", turn["message"])
                    for turn in record["content"]
                )
                yield dialogue(f"topical-{key}", "topical-chat", "open_chat", split, turns)
