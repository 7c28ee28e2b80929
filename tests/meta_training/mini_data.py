"""A prepared data folder in small: every file the corpus reads, in its documented form.

The shop is the training source. What is held out, watched or spoken is made of word lists, so that
no text of one is a text of another.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from meta_training.tasks.sources import DIALOGUE_FILES, INTENT_FILES

SHOP = Path(__file__).parents[1] / "data" / "shop.jsonl"
PERSONAS = "style-chitchat-en.jsonl.gz"
FAQ = "faq-dstc9.jsonl.gz"

WORDINGS = (
    "how do I {}",
    "please {}",
    "could you {} for me",
    "I want to {}",
    "is it possible to {}",
    "help me {}",
    "what must I do to {}",
    "can I {} today",
    "{} please, I am in a hurry",
    "who would {} if I asked",
)
HELD_OUT: dict[str, dict[str, tuple[str, ...]]] = {  # source -> domain -> intents
    "clinc150": {
        "cards": ("block a card", "raise a limit", "split a bill", "read a pin", "lose a wallet")
    },
    "bitext-support": {
        "order": ("track an order", "return a parcel", "swap a size"),
        "refund": ("claim money back", "dispute a fee", "print an invoice"),
    },
}
VALIDATION = ("rent a boat", "paint a wall", "feed a goat", "bake a loaf", "mend a roof")
SMALL_TALK = ("sing", "dance", "sleep", "dream", "cook", "swim", "laugh", "read", "paint", "fly")
STYLES = {
    "professional": "I do not {}.",
    "friendly": "Ha, I would love to {} with you!",
    "witty": "Only clouds {} here.",
    "caring": "I cannot {}, but tell me how you are.",
}
PLACES = ("garden", "harbour", "castle", "market", "station", "museum", "forest", "bridge")
THINGS = ("lamp", "basket", "kettle", "ladder", "blanket", "mirror")


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    """Write rows as JSON lines, compressed where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def shop_rows() -> list[dict[str, str]]:
    """The twenty intents of the shop."""
    return [json.loads(line) for line in SHOP.read_text("utf-8").splitlines()]


def write_data(folder: Path) -> Path:
    """Write every file ``load_corpus`` reads below ``folder``."""
    intents: dict[str, list[dict[str, str]]] = {
        name: [{"text": "One row is no intent.", "intent": "few", "domain": "few"}]
        for name in INTENT_FILES
    }
    intents["clinc150.jsonl"] += shop_rows()
    for source, domains in HELD_OUT.items():
        for domain, names in domains.items():
            intents[f"{source}.jsonl"] += _asked(domain, names)
    intents["hint3.jsonl"] += _asked("chores", VALIDATION)
    dialogues = {name: list(_dialogues(name)) for name in DIALOGUE_FILES}
    files: Mapping[str, list[Any]] = {
        **intents,
        **dialogues,
        PERSONAS: list(_personas()),
        FAQ: list(_faq()),
    }
    for name, rows in files.items():
        write_rows(folder / name, rows)
    return folder


def _asked(domain: str, intents: Iterable[str]) -> list[dict[str, str]]:
    return [
        {"text": wording.format(intent), "intent": intent.replace(" ", "_"), "domain": domain}
        for intent, wording in product(intents, WORDINGS)
    ]


def _dialogues(name: str) -> Iterator[dict[str, Any]]:
    """The first source has a test split; the second has none, so each 20th row is a test."""
    source = name.split(".")[0]
    sizes = {DIALOGUE_FILES[0]: 40, DIALOGUE_FILES[1]: 25}
    pairs = list(product(PLACES, THINGS))
    for i in range(sizes.get(name, 1)):
        place, thing = pairs[i]
        row: dict[str, Any] = {
            "source": source,
            "turns": _turns(f"{thing} of {source[10:]}", place),
        }
        if name == DIALOGUE_FILES[0]:
            row["split"] = "test" if i % 4 == 3 else "train"
        yield row


def _turns(thing: str, place: str) -> list[dict[str, str]]:
    texts = (
        f"Where is the {thing}?",
        f"The {thing} is in the {place}.",
        "Thank you.",
        f"Come to the {place} when you need a {thing} again, we are open all day.",
        f"What does the {thing} cost?",
        f"Ask at the {place}.",
    )
    roles = ("user", "assistant") * 3
    return [{"role": role, "text": text} for role, text in zip(roles, texts, strict=True)]


def _personas() -> Iterator[dict[str, Any]]:
    for group, verb in enumerate(SMALL_TALK):
        responses = {style: answer.format(verb) for style, answer in STYLES.items()}
        for query in (f"Can you {verb}?", f"Do robots {verb}?", f"Will you ever {verb}?"):
            yield {"query": query, "lang": "en", "responses": responses, "group": group}


def _faq() -> Iterator[dict[str, Any]]:
    for split, thing in product(("train", "test"), THINGS):
        for number, place in enumerate(PLACES):
            yield {
                "question": f"Has the {place} a {thing}?",
                "answer": f"The {split} {place} keeps {number + 2} of each {thing} near the door.",
                "split": split,
            }
