"""Everything a recipe trains and reports on, split once into what is learned and what is held out.

Knows the recipe and the sources; knows nothing about tokens or models.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from meta_training.recipe import DataPart
from meta_training.tasks.sources import (
    DIALOGUE_FILES,
    INTENT_FILES,
    Dialogue,
    Intent,
    PersonaGroup,
    load_dialogues,
    load_faq_answers,
    load_intents,
    load_personas,
)


@dataclass(frozen=True)
class Corpus:
    """Task material. ``held_out_*`` and ``test_*`` are never seen in any training stage."""

    train_intents: list[Intent]
    validation_intents: list[Intent]
    held_out_intents: list[Intent]
    train_dialogues: list[Dialogue]
    test_dialogues: list[Dialogue]
    train_personas: list[PersonaGroup]
    held_out_personas: list[PersonaGroup]
    train_replies: list[str]
    test_replies: list[str]


def load_corpus(folder: Path, part: DataPart, seed: int) -> Corpus:
    """Read all sources below ``folder`` and split them as the recipe says.

    Dialogues of a test split (every 20th where the source has none) are held out; so are FAQ
    answers of the test split, which serve as replies never seen before.

    Raises:
        DataError: a file is missing or broken.
    """
    intents = [intent for name in INTENT_FILES for intent in load_intents(folder / name)]
    held_out = [intent for intent in intents if _is_held_out(intent, part)]
    validation = [intent for intent in intents if intent.source in part.validation]
    reserved = set(held_out) | set(validation)
    dialogues = [d for name in DIALOGUE_FILES for d in load_dialogues(folder / name)]
    test = [d for i, d in enumerate(dialogues) if _is_test(d, i)]
    train = [d for i, d in enumerate(dialogues) if not _is_test(d, i)]
    personas = load_personas(folder / "style-chitchat-en.jsonl.gz")
    random.Random(seed).shuffle(personas)
    cut = round(len(personas) * part.held_out_persona_share)
    train_replies = _agent_turns(train) + load_faq_answers(folder / "faq-dstc9.jsonl.gz", "train")
    seen = set(train_replies)
    test_replies = _agent_turns(test) + load_faq_answers(folder / "faq-dstc9.jsonl.gz", "test")
    return Corpus(
        train_intents=[intent for intent in intents if intent not in reserved],
        validation_intents=validation,
        held_out_intents=held_out,
        train_dialogues=train,
        test_dialogues=test,
        train_personas=personas[cut:],
        held_out_personas=personas[:cut],
        train_replies=train_replies,
        test_replies=[reply for reply in dict.fromkeys(test_replies) if reply not in seen],
    )


def _is_held_out(intent: Intent, part: DataPart) -> bool:
    domains = part.held_out.get(intent.source, [])
    return domains == "all" or intent.domain in domains


def _is_test(dialogue: Dialogue, index: int) -> bool:
    return dialogue.split == "test" or (dialogue.split is None and index % 20 == 0)


def _agent_turns(dialogues: list[Dialogue]) -> list[str]:
    turns = (text for d in dialogues for role, text in d.turns if role == "assistant")
    return list(dict.fromkeys(turns))
