"""A source's classes in three: to train on, to choose by, to report on; as often as one asks.

Few-shot results of intent detection are means over several such splits (ProtAugment, Dopierre et
al. 2021, arXiv 2105.12995, section 4: five of each data set, 50, 50 and 50 of CLINC150's classes).
Knows intents, and the files in which the paper's authors keep theirs; nothing about training.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from meta_training.tasks.sources import DataError, Intent

Side = Literal["train", "validation", "held_out"]
FILES: Final[dict[Side, str]] = {"train": "train", "validation": "valid", "held_out": "test"}
FEWEST: Final = 5  # classes of each side: tasks are 5-way


class SplitPart(BaseModel):
    """Which classes of a public source are trained on, chosen by and reported on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(description="an intent source of the public data, such as clinc150")
    number: int = Field(0, ge=0, description="which split; another number, another split")
    lists: str | None = Field(
        None,
        description="folder below --data with 01/labels.train.txt, .valid.txt and .test.txt for "
        "number 0 and so on, a class a line; without it, classes are drawn by source and number",
    )


def split_intents(
    intents: Sequence[Intent], part: SplitPart, folder: Path
) -> dict[Side, list[Intent]]:
    """The classes of ``part.source``, each on one side, in the order of ``intents``.

    Drawn, a third is held out, a third is for validation (rounded down), the rest is trained on.

    Raises:
        DataError: there is no such source, it has too few classes, or a list does not fit it.
    """
    own = [intent for intent in intents if intent.source == part.source]
    if not own:
        have = ", ".join(sorted({intent.source for intent in intents}))
        raise DataError(
            f"the recipe splits {part.source}, which the data does not have; it has {have}"
        )
    names = sorted({intent.name for intent in own})
    sides = _drawn(names, part) if part.lists is None else _listed(names, part, folder)
    few = min(len(side) for side in sides.values())
    if few < FEWEST:
        raise DataError(
            f"{part.source} has {len(names)} classes, which leaves {few} for one of training, "
            f"validation and test; each needs {FEWEST}: split a source with more classes"
        )
    return {side: [intent for intent in own if intent.name in sides[side]] for side in FILES}


def _drawn(names: Sequence[str], part: SplitPart) -> dict[Side, set[str]]:
    order = random.Random(f"{part.source}/{part.number}").sample(names, len(names))
    third = len(names) // 3
    return {
        "held_out": set(order[:third]),
        "validation": set(order[third : 2 * third]),
        "train": set(order[2 * third :]),
    }


def _listed(names: Sequence[str], part: SplitPart, folder: Path) -> dict[Side, set[str]]:
    place = folder / str(part.lists) / f"{part.number + 1:02d}"
    sides: dict[Side, set[str]] = {}
    for side, kind in FILES.items():
        path = place / f"labels.{kind}.txt"
        try:
            sides[side] = set(path.read_text("utf-8").split("\n")) - {""}
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"data.split.lists: cannot read {path}: {error}") from error
        wrong = sorted(sides[side] - set(names))
        twice = sorted(
            name for other in sides if other != side for name in sides[other] & sides[side]
        )
        if wrong or twice:
            what = f"{wrong[0]!r} is no class" if wrong else f"{twice[0]!r} is on another side too"
            raise DataError(f"{path}: {what} of {part.source}")
    return sides
