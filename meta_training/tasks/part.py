"""What a recipe, or ``innerloop evaluate --tasks``, says of a file of one's own tasks.

Knows the form of that; knows nothing about files or episodes.
"""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PUBLIC_FAMILIES = {"label": 1.0, "house_reply": 1.0, "persona": 0.3}
FAMILIES = frozenset({*PUBLIC_FAMILIES, "replies", "verdict", "rating"})
BLANK = re.compile(r"\{(#?\w[\w ]*|)\}")  # MRPC's columns are called "#1 String"
Form = Literal["labels", "replies", "pairs", "preferences", "parallel", "dialogues", "formats"]
FORMS: dict[Form, tuple[str, ...]] = {  # fields of a row; those in brackets may be left out
    "labels": ("text", "label", "[domain]"),
    "replies": ("text", "answer", "[domain]"),
    "pairs": ("task", "prompt", "completion", "[pattern]"),
    "preferences": ("task", "prompt", "chosen", "rejected"),
    "parallel": ("id", "lang", "text"),
    "dialogues": ("turns", "[domain]"),
    "formats": ("prompt", "completion"),
}


class TaskPart(BaseModel):
    """A file of one's own tasks, or a Hugging Face dataset; ``docs/meta-training.md`` has forms."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None = Field(None, description="below --data; .jsonl, .jsonl.gz or .tsv")
    dataset: str | None = Field(
        None, description="instead: a Hugging Face dataset, by name or by folder below --data"
    )
    config: str | None = Field(None, description="the dataset's configuration, such as sst2")
    split: str = Field("train", description="the dataset's split")
    form: Form = Field(description="what a row is")
    name: str | None = Field(None, description="in reports; without a word the file's")
    family: str | None = Field(
        None, description="what reports call such tasks; without a word label, domain or the form"
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="field of the form -> column of the file, where not alike"
    )
    where: dict[str, str | list[str]] = Field(
        default_factory=dict, description="column -> value, or values, of the rows that count"
    )
    prompt: str = Field(
        "{}", description="how a text is asked: {} is the text, {column} another of the file's"
    )
    from_lang: str = Field("en", description="parallel: the language that is translated from")
    as_typed: bool = Field(
        False, description="each question also without capitals and punctuation, as a wording"
    )
    longest_words: int = Field(
        60, ge=1, description="rows with a longer text are left out; one of them pads a whole batch"
    )
    held_out: float | list[str] = Field(
        0.2, description="share of classes or tasks kept for the report, or their names or domains"
    )
    validation: float | list[str] = Field(0.1, description="the same, for validation")

    @property
    def place(self) -> str:
        """What it is called in messages and records."""
        return str(PurePath(self.path or self.dataset or ""))

    @property
    def family_name(self) -> str:
        """The task family that it is material for."""
        named = {"labels": "label", "dialogues": "domain"}
        return self.family or named.get(self.form, self.form)

    @property
    def is_pairs(self) -> bool:
        """Whether its tasks are pairs of a prompt and an answer, no two of one question."""
        return self.form not in ("labels", "replies")

    @model_validator(mode="after")
    def _usable(self) -> TaskPart:
        fields = [field.strip("[]") for field in FORMS[self.form]]
        unknown = sorted(self.columns.keys() - set(fields))
        wrong = ""
        if (self.path is None) == (self.dataset is None):
            wrong = "give either path or dataset"
        elif unknown:
            wrong = (
                f"columns.{unknown[0]}: {self.form} has the fields {', '.join(FORMS[self.form])}"
            )
        elif not BLANK.search(self.prompt):
            wrong = "prompt: write {} where the text goes, or {column}"
        elif self.form in ("parallel", "dialogues") and set(BLANK.findall(self.prompt)) != {""}:
            wrong = f"prompt: {self.form} are asked with their text alone, {{}}"
        elif self.family in FAMILIES:
            wrong = f"family: {self.family} is one of our own, choose another name"
        for name in ("held_out", "validation"):
            share = getattr(self, name)
            if isinstance(share, float) and not 0 <= share <= 1:
                wrong = f"{name}: a share is between 0 and 1"
        if wrong:
            raise ValueError(wrong)
        return self
