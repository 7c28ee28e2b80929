"""Reads one's own tasks: files or Hugging Face datasets in the forms of ``TaskPart``.

Every class, task or domain is either trained on, validated on or held out, as a whole. Knows files
and their forms; knows nothing about tokens, episodes or models.
"""

from __future__ import annotations

import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

from meta_training.tasks.formats import format_tasks
from meta_training.tasks.part import TaskPart
from meta_training.tasks.rows import Row, rows_of
from meta_training.tasks.sources import (
    DataError,
    Dialogue,
    Intent,
    Pair,
    PairTask,
    dialogue_turns,
)
from meta_training.tasks.tables import refuse_scores

Use = Literal["train", "validation", "held_out"]
LEAST_PAIRS = 2  # of a task: one to learn from and one to ask
TYPED = re.compile(r"[^\w\s]")


@dataclass
class Material:
    """What one's own tasks give to training, to validation or to the report."""

    intents: list[Intent] = field(default_factory=list)
    pairs: list[PairTask] = field(default_factory=list)
    dialogues: list[Dialogue] = field(default_factory=list)
    names: dict[str, list[str]] = field(default_factory=dict)  # by file, of what is its own


def load_tasks(folder: Path, parts: Sequence[TaskPart], seed: int) -> dict[Use, Material]:
    """Read ``parts`` below ``folder`` and split them as each says.

    Raises:
        DataError: a file or dataset is missing or broken, a field is missing, too few rows make a
            task, or a part holds out or validates on names that it does not have.
    """
    found: dict[Use, Material] = {use: Material() for use in ("train", "validation", "held_out")}
    names = [_source(part) for part in parts]
    for number, (part, name) in enumerate(zip(parts, names, strict=True)):
        again = names[:number].count(name)
        _READERS[part.form](folder, part, f"{name}-{again + 1}" if again else name, seed, found)
    return found


def _source(part: TaskPart) -> str:
    return part.name or Path(part.place).name.split(".")[0]


def _read_intents(
    folder: Path, part: TaskPart, source: str, seed: int, found: dict[Use, Material]
) -> None:
    questions: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    group = "answer" if part.form == "replies" else "label"
    for row in rows_of(folder, part, source):
        if part.form == "labels":
            refuse_scores(row.values, part.columns.get("label", "label"), row.path, row.line)
        key = (row.optional("domain", source), row.text(group))
        text = row.asked(part, "text")
        questions[key][text] = None
        if part.as_typed:
            questions[key][as_typed(text)] = None
    intents = [
        Intent(source, domain, name, tuple(texts), answer, part.family or "")
        for (domain, name), texts in sorted(questions.items())
        if len(texts) >= LEAST_PAIRS
        for answer in [name if part.form == "replies" else None]
    ]
    _check_some(intents, part, f"no {group} has {LEAST_PAIRS} texts or more")
    uses = _split([(intent.name, intent.domain) for intent in intents], part, source, seed)
    if part.form == "labels":
        _check_classes(intents, uses, part)
    for intent, use in zip(intents, uses, strict=True):
        found[use].intents.append(intent)
        alone = intent.domain == source  # a part's own name is no part of the data
        name = intent.name if alone else f"{intent.domain}/{intent.name}"
        found[use].names.setdefault(part.place, []).append(name)


def _read_pairs(
    folder: Path, part: TaskPart, source: str, seed: int, found: dict[Use, Material]
) -> None:
    tasks: dict[str, list[Pair]] = defaultdict(list)
    answer = "chosen" if part.form == "preferences" else "completion"
    for row in rows_of(folder, part, source):
        rejected = row.text("rejected") if part.form == "preferences" else ""
        pattern = row.optional("pattern", "") if part.form == "pairs" else ""
        _check_pattern(pattern, row)
        prompt = row.asked(part, "prompt")
        tasks[row.text("task")].append(Pair(prompt, row.text(answer), rejected, pattern))
    _keep_pairs(tasks, part, source, seed, found)


def _read_parallel(
    folder: Path, part: TaskPart, source: str, seed: int, found: dict[Use, Material]
) -> None:
    said: dict[str, dict[str, str]] = defaultdict(dict)  # id -> language -> text
    for row in rows_of(folder, part, source):
        said[row.text("id")].setdefault(row.text("lang"), row.text("text"))
    tasks: dict[str, list[Pair]] = defaultdict(list)
    for texts in said.values():
        original = texts.get(part.from_lang)
        for lang, text in texts.items():
            if original is not None and lang != part.from_lang:
                tasks[lang].append(Pair(part.prompt.replace("{}", original), text))
    _check_some(list(tasks), part, f"no id has a text in {part.from_lang!r} and another language")
    _keep_pairs(tasks, part, source, seed, found)


def _read_formats(
    folder: Path, part: TaskPart, source: str, seed: int, found: dict[Use, Material]
) -> None:
    rows = rows_of(folder, part, source)
    said = [(row.asked(part, "prompt"), row.text("completion")) for row in rows]
    _keep_pairs(format_tasks(said, seed), part, source, seed, found)


def _read_dialogues(
    folder: Path, part: TaskPart, source: str, seed: int, found: dict[Use, Material]
) -> None:
    domains: dict[str, list[Dialogue]] = defaultdict(list)
    for row in rows_of(folder, part, source):
        turns = dialogue_turns(row.values, row.path, row.line)
        if all(len(text.split()) <= part.longest_words for _, text in turns):
            domain = row.optional("domain", source)
            domains[domain].append(Dialogue(source, None, turns))
    tasks = {
        domain: [
            Pair(part.prompt.replace("{}", asked), said)
            for dialogue in dialogues
            for (role, asked), (next_role, said) in pairwise(dialogue.turns)
            if (role, next_role) == ("user", "assistant")
        ]
        for domain, dialogues in domains.items()
    }
    for task, use in _keep_pairs(tasks, part, source, seed, found):
        found[use].dialogues += domains[task.name]


def _keep_pairs(
    tasks: dict[str, list[Pair]],
    part: TaskPart,
    source: str,
    seed: int,
    found: dict[Use, Material],
) -> list[tuple[PairTask, Use]]:
    """Sort the tasks into their uses; tells which went where."""
    made = []
    for name, pairs in sorted(tasks.items()):
        distinct = tuple({pair.prompt: pair for pair in reversed(pairs)}.values())[::-1]
        if len(distinct) >= LEAST_PAIRS:
            made.append(PairTask(part.family_name, source, name, distinct))
    _check_some(made, part, f"no task has {LEAST_PAIRS} prompts or more")
    uses = _split([(task.name, task.name) for task in made], part, source, seed)
    for task, use in zip(made, uses, strict=True):
        found[use].pairs.append(task)
        found[use].names.setdefault(part.place, []).append(task.name)
    return list(zip(made, uses, strict=True))


_Reader = Callable[[Path, TaskPart, str, int, dict[Use, Material]], None]
_READERS: dict[str, _Reader] = {
    "labels": _read_intents,
    "replies": _read_intents,
    "pairs": _read_pairs,
    "preferences": _read_pairs,
    "parallel": _read_parallel,
    "formats": _read_formats,
    "dialogues": _read_dialogues,
}


def as_typed(text: str) -> str:
    """``text`` as people type it: no capitals, no punctuation."""
    return " ".join(TYPED.sub(" ", text).lower().split())


def _split(groups: Sequence[tuple[str, str]], part: TaskPart, source: str, seed: int) -> list[Use]:
    """What each group, of a name and a domain, is used for."""
    # A place's own answers stay together: an episode is about one place.
    whole = part.form == "replies" and len({domain for _, domain in groups}) > 1
    units = [domain if whole else f"{domain}/{name}" for name, domain in groups]
    order = sorted(set(units))
    random.Random(f"{seed}/{source}").shuffle(order)
    uses: dict[int, Use] = {}
    for use in ("held_out", "validation"):
        wanted = part.held_out if use == "held_out" else part.validation
        if isinstance(wanted, float):
            left = [unit for unit in order if unit not in {units[i] for i in uses}]
            taken = set(left[: round(wanted * len(order))])
            chosen = [i for i, unit in enumerate(units) if unit in taken]
        else:
            known = {name for group in groups for name in group}
            missing = sorted(set(wanted) - known)
            if missing:
                raise DataError(
                    f"{part.place}: {use} names {', '.join(missing)}, which is not there; there "
                    f"are {', '.join(sorted({domain for _, domain in groups}))}"
                )
            chosen = [
                i for i, group in enumerate(groups) if i not in uses and set(group) & set(wanted)
            ]
        uses |= dict.fromkeys(chosen, use)
    return [uses.get(i, "train") for i in range(len(groups))]


def _check_some(found: Sequence[object], part: TaskPart, wrong: str) -> None:
    if not found:
        raise DataError(f"{part.place}: {wrong}")


def _check_classes(intents: Sequence[Intent], uses: Sequence[Use], part: TaskPart) -> None:
    """Labels are told apart: one alone teaches nothing, nor does a text that has two."""
    if len(intents) == 1 or uses.count("train") == 1:
        what = "there is" if len(intents) == 1 else "training is left with"
        raise DataError(
            f"{part.place}: {what} one label of {LEAST_PAIRS} texts or more, and labels are told "
            "apart: give it more, or keep fewer of them out (held_out, validation)"
        )
    labels = Counter(text for intent in intents for text in intent.questions)
    several = [text for text, count in labels.items() if count > 1]
    if several:
        print(
            f"{part.place}: {len(several)} texts have more than one label, such as "
            f"{several[0][:60]!r}: an episode takes either for right",
            file=sys.stderr,
        )


def _check_pattern(pattern: str, row: Row) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise DataError(
            f"{row.path}:{row.line}: field 'pattern' is no regular expression: {error}"
        ) from error


def texts_of(material: Iterable[PairTask]) -> list[str]:
    """Every text of pair tasks, as often as it occurs."""
    return [
        text
        for task in material
        for pair in task.pairs
        for text in (pair.prompt, pair.completion, pair.rejected)
        if text
    ]
