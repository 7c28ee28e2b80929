"""The rows of a file or a Hugging Face dataset, as a part of one's own tasks wants to see them.

Knows files, datasets and columns; nothing about tasks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meta_training.tasks.part import BLANK, FORMS, TaskPart
from meta_training.tasks.sources import DataError
from meta_training.tasks.sources import field as text_field
from meta_training.tasks.tables import read_table


@dataclass(frozen=True)
class Row:
    """A row of a file, its fields renamed as the form has them."""

    values: dict[str, Any]
    path: Path
    line: int

    def text(self, name: str) -> str:
        """A field that must be there.

        Raises:
            DataError: it is missing or no text; names file, line and field.
        """
        value = self.values.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)  # numbered labels
        return text_field(self.values, name, self.path, self.line)

    def asked(self, part: TaskPart, name: str) -> str:
        """The field ``name``, or other columns, as ``part`` asks it."""
        return BLANK.sub(lambda blank: self.text(blank[1] or name), part.prompt)

    def optional(self, name: str, default: str) -> str:
        """A field that may be left out."""
        return default if self.values.get(name) is None else self.text(name)


def rows_of(folder: Path, part: TaskPart, source: str) -> Iterator[Row]:
    """The rows that count, of a length that fits; tells how many were too long.

    Raises:
        DataError: a missing or broken file, a dataset that cannot be loaded, or no row that counts.
    """
    renamed = {column: name for name, column in part.columns.items()}
    allowed = {
        column: {values} if isinstance(values, str) else set(values)
        for column, values in part.where.items()
    }
    path = Path(part.place) if part.path is None else folder / part.path
    fields = [name.strip("[]") for name in FORMS[part.form]]
    long = seen = 0
    for line, values in read_table(path) if part.path else _dataset_rows(folder, part):
        if any(str(values.get(column)) not in wanted for column, wanted in allowed.items()):
            continue
        seen += 1
        row = {**values, **{renamed[c]: v for c, v in values.items() if c in renamed}}
        texts = [row[name] for name in fields if isinstance(row.get(name), str)]
        if any(len(text.split()) > part.longest_words for text in texts):
            long += 1
            continue
        yield Row(row, path, line)
    if not seen:
        raise DataError(f"{path}: no row has {part.where or 'anything in it'}")
    if long:
        print(
            f"{source}: {long} of {seen} rows left out, longer than {part.longest_words} words "
            "(longest_words)",
            file=sys.stderr,
        )


def _dataset_rows(folder: Path, part: TaskPart) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        from datasets import ClassLabel, load_dataset
    except ModuleNotFoundError as error:
        raise DataError(
            f"{part.place} is a Hugging Face dataset: pip install 'innerloop[datasets]' to read it"
        ) from error
    assert part.dataset is not None
    local = folder / part.dataset
    try:
        dataset = load_dataset(
            str(local) if local.is_dir() else part.dataset, part.config, split=part.split
        )
    except Exception as error:  # the library raises anything, from ConnectionError to ValueError
        raise DataError(
            f"the dataset {part.place} (config {part.config}, split {part.split}) cannot be "
            f"loaded: {type(error).__name__}: {error}"
        ) from error
    names = {
        column: feature.names
        for column, feature in dataset.features.items()
        if isinstance(feature, ClassLabel)
    }
    for line, row in enumerate(dataset, 1):
        # GLUE's test splits have -1 for what is not told.
        yield (
            line,
            {
                c: names[c][v] if c in names and v is not None and v >= 0 else v
                for c, v in row.items()
            },
        )
