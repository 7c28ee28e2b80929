"""Everything a recipe trains and reports on, split once into what is learned and what is held out.

Knows the recipe and the sources; knows nothing about tokens or models.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from meta_training.kept_out import KeptOut
from meta_training.recipe_parts import DataPart
from meta_training.tasks.own import LEAST_PAIRS, Material, Use, as_typed, load_tasks, texts_of
from meta_training.tasks.part import TaskPart
from meta_training.tasks.sources import (
    DIALOGUE_FILES,
    INTENT_FILES,
    MINIMUM_QUESTIONS,
    DataError,
    Dialogue,
    Intent,
    PairTask,
    PersonaGroup,
    load_dialogues,
    load_faq_answers,
    load_intents,
    load_personas,
)
from meta_training.tasks.split import Side, split_intents

PERSONAS, FAQ = "style-chitchat-en.jsonl.gz", "faq-dstc9.jsonl.gz"
Group = TypeVar("Group", Intent, PersonaGroup)


@dataclass(frozen=True)
class Corpus:
    """Task material. ``held_out_*`` and ``test_*`` are never seen in any training stage."""

    train_intents: list[Intent] = field(default_factory=list)
    validation_intents: list[Intent] = field(default_factory=list)
    held_out_intents: list[Intent] = field(default_factory=list)
    train_dialogues: list[Dialogue] = field(default_factory=list)
    test_dialogues: list[Dialogue] = field(default_factory=list)
    train_personas: list[PersonaGroup] = field(default_factory=list)
    held_out_personas: list[PersonaGroup] = field(default_factory=list)
    train_replies: list[str] = field(default_factory=list)
    test_replies: list[str] = field(default_factory=list)
    train_pairs: list[PairTask] = field(default_factory=list)
    validation_pairs: list[PairTask] = field(default_factory=list)
    held_out_pairs: list[PairTask] = field(default_factory=list)
    kept_out: KeptOut = field(default_factory=dict)  # of one's own tasks

    @property
    def held_out_digest(self) -> str:
        """Of everything that held-out tasks are drawn from."""
        return _digest(
            self.held_out_intents,
            self.test_replies,
            self.held_out_personas,
            self.held_out_pairs,
            self.test_dialogues,
        )

    @property
    def validation_digest(self) -> str:
        """Of everything that validation tasks are drawn from."""
        return _digest(
            self.validation_intents,
            self.train_replies,
            self.train_personas,
            self.validation_pairs,
        )

    def own_turns(self) -> Iterator[tuple[str, str, str]]:
        """(source, question, answer) of pair tasks and intents; no answer where it is drawn."""
        for task in (*self.train_pairs, *self.validation_pairs, *self.held_out_pairs):
            for pair in task.pairs:
                yield task.source, pair.prompt, max(pair.completion, pair.rejected, key=len)
        for intent in (*self.train_intents, *self.validation_intents, *self.held_out_intents):
            for question in intent.questions:
                yield intent.source, question, intent.answer or ""

    def own_texts(self) -> Iterator[str]:
        """Every text of pair tasks, and of what all families ask."""
        yield from texts_of([*self.train_pairs, *self.validation_pairs, *self.held_out_pairs])
        for intent in (*self.train_intents, *self.validation_intents, *self.held_out_intents):
            yield from intent.questions


def load_corpus(folder: Path, part: DataPart, seed: int) -> Corpus:
    """Read the recipe's own tasks and the public sources below ``folder``; split them as it says.

    Own classes, tasks and domains are held out as a whole. Public dialogues of a test split (every
    20th where the source has none) are, and so are FAQ answers of the test split, which serve as
    replies never seen before. What is held out loses the texts that training has by another way
    ("yes", "what is my account balance").

    Raises:
        DataError: a file is missing or broken, or the recipe names a source or domain to hold out
            or to validate on that the data does not have, or a source that cannot be split.
    """
    public = _public(folder, part, seed) if part.reads_public else Corpus()
    own = load_tasks(folder, part.tasks, seed) if part.tasks else {}
    return _joined(public, own) if own else public


def files_of(part: DataPart) -> set[str]:
    """The files and datasets that a recipe reads, as ``TaskPart.place`` has them."""
    public = {*INTENT_FILES, *DIALOGUE_FILES, PERSONAS, FAQ} if part.reads_public else set()
    return public | {task.place for task in part.tasks}


def held_out_only(folder: Path, parts: Sequence[TaskPart], seed: int) -> Corpus:
    """Tasks of which nothing was trained on, all of them for the report.

    Raises:
        DataError: as of ``load_corpus``.
    """
    everything = {"held_out": 1.0, "validation": 0.0}
    own = load_tasks(folder, [part.model_copy(update=everything) for part in parts], seed)
    return _joined(Corpus(), own)


def _digest(*material: Sequence[object]) -> str:
    return hashlib.sha256(repr(material).encode()).hexdigest()[:16]


def _joined(public: Corpus, own: dict[Use, Material]) -> Corpus:
    """Public and own material; what is held out of either loses what training has by the other.

    Texts that differ in capitals, punctuation or spaces are one here. (The public data's own split,
    which published figures are about, is by exact texts.)
    """
    train, validation, held_out = own["train"], own["validation"], own["held_out"]
    replies = _said(train)
    ours = {*training_texts(train.dialogues, train.intents, []), *texts_of(train.pairs), *replies}
    theirs = training_texts(public.train_dialogues, public.train_intents, public.train_personas)
    ours_as_typed = {as_typed(text) for text in ours}
    seen = ours_as_typed | {as_typed(text) for text in (*theirs, *public.train_replies)}
    public_held_out = _unseen(public.held_out_intents, ours_as_typed, MINIMUM_QUESTIONS, as_typed)
    test_replies = [text for text in public.test_replies if as_typed(text) not in ours_as_typed]
    test_replies += [text for text in _said(held_out) if as_typed(text) not in seen]
    return replace(
        public,
        train_intents=public.train_intents + train.intents,
        validation_intents=public.validation_intents + validation.intents,
        held_out_intents=public_held_out + _unseen(held_out.intents, seen, LEAST_PAIRS, as_typed),
        train_dialogues=public.train_dialogues + train.dialogues,
        test_dialogues=public.test_dialogues + held_out.dialogues,
        held_out_personas=_unseen(public.held_out_personas, ours_as_typed, 2, as_typed),
        train_replies=public.train_replies + replies,
        test_replies=list(dict.fromkeys(test_replies)),
        train_pairs=train.pairs,
        validation_pairs=validation.pairs,
        held_out_pairs=held_out.pairs,
        kept_out=_kept_out(own),
    )


def _kept_out(own: dict[Use, Material]) -> KeptOut:
    files = {file: None for material in own.values() for file in material.names}
    uses: tuple[Use, ...] = ("held_out", "validation")
    return {file: {use: own[use].names.get(file, []) for use in uses} for file in files}


def _public(folder: Path, part: DataPart, seed: int) -> Corpus:
    intents = [intent for name in INTENT_FILES for intent in load_intents(folder / name)]
    sides = _sides(intents, part, folder)
    dialogues = [d for name in DIALOGUE_FILES for d in load_dialogues(folder / name)]
    test = [d for i, d in enumerate(dialogues) if _is_test(d, i)]
    train = [d for i, d in enumerate(dialogues) if not _is_test(d, i)]
    personas = load_personas(folder / PERSONAS)
    random.Random(seed).shuffle(personas)
    cut = round(len(personas) * part.held_out_persona_share)
    train_intents = sides["train"]
    train_replies = _agent_turns(train) + load_faq_answers(folder / FAQ, "train")
    test_replies = _agent_turns(test) + load_faq_answers(folder / FAQ, "test")
    seen = set(training_texts(train, train_intents, personas[cut:])) | set(train_replies)
    return Corpus(
        train_intents=train_intents,
        validation_intents=sides["validation"],
        held_out_intents=_unseen(sides["held_out"], seen, MINIMUM_QUESTIONS),
        train_dialogues=train,
        test_dialogues=test,
        train_personas=personas[cut:],
        held_out_personas=_unseen(personas[:cut], seen, 2),
        train_replies=train_replies,
        test_replies=[reply for reply in dict.fromkeys(test_replies) if reply not in seen],
    )


def _sides(intents: list[Intent], part: DataPart, folder: Path) -> dict[Side, list[Intent]]:
    """What of the public intents is trained on, watched and held out."""
    if part.split is not None:
        return split_intents(intents, part.split, folder)
    _check_names(intents, part)
    held_out = [intent for intent in intents if _is_held_out(intent, part)]
    validation = [intent for intent in intents if intent.source in part.validation]
    reserved = set(held_out) | set(validation)
    train = [intent for intent in intents if intent not in reserved]
    return {"train": train, "validation": validation, "held_out": held_out}


def _said(own: Material) -> list[str]:
    """Answers to serve as house replies."""
    return _agent_turns(own.dialogues) + [i.answer for i in own.intents if i.answer is not None]


def training_texts(
    dialogues: Sequence[Dialogue], intents: Sequence[Intent], personas: Sequence[PersonaGroup]
) -> list[str]:
    """Every text of this material, as often as it occurs."""
    texts = [text for dialogue in dialogues for _, text in dialogue.turns]
    texts += [question for intent in intents for question in intent.questions]
    texts += [text for group in personas for _, text in group.answers]
    texts += [question for group in personas for question in group.questions]
    return texts


def _unseen(
    groups: Sequence[Group],
    seen: set[str],
    least: int,
    form: Callable[[str], str] = str,
) -> list[Group]:
    """``groups`` without the questions whose ``form`` is ``seen``, where ``least`` are left."""
    cleaned = [
        replace(group, questions=tuple(q for q in group.questions if form(q) not in seen))
        for group in groups
    ]
    return [group for group in cleaned if len(group.questions) >= least]


def _check_names(intents: Sequence[Intent], part: DataPart) -> None:
    domains: dict[str, set[str]] = defaultdict(set)
    for intent in intents:
        domains[intent.source].add(intent.domain)
    for source, held_out in part.held_out.items():
        have = domains.get(source, set())
        wrong = set() if held_out == "all" else set(held_out) - have
        if wrong or not have:
            raise DataError(
                f"the recipe holds out {source}: {', '.join(sorted(wrong)) or 'all'}, which the "
                f"data does not have; it has {', '.join(sorted(have or domains))}"
            )
    for source in part.validation:
        if source not in domains:
            raise DataError(
                f"the recipe validates on {source}, which the data does not have; it has "
                f"{', '.join(sorted(domains))}"
            )


def _is_held_out(intent: Intent, part: DataPart) -> bool:
    domains = part.held_out.get(intent.source, [])
    return domains == "all" or intent.domain in domains


def _is_test(dialogue: Dialogue, index: int) -> bool:
    return dialogue.split == "test" or (dialogue.split is None and index % 20 == 0)


def _agent_turns(dialogues: list[Dialogue]) -> list[str]:
    turns = (text for d in dialogues for role, text in d.turns if role == "assistant")
    return list(dict.fromkeys(turns))
