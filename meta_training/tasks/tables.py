"""Reads the rows of a table: TSV with a header, JSON lines, and what GLUE's own files have instead.

Knows columns; knows nothing about episodes or models.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from meta_training.tasks.sources import UTF8, DataError, check_there, not_utf8, read_rows

LABELS = ("label", "Quality", "gold_label", "is_duplicate")  # columns of GLUE's tasks
TEXTS = (  # pairs before what they contain
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("premise", "hypothesis"),
    ("#1 String", "#2 String"),
    ("sentence",),
    ("text",),
)
COLA = ("source", "label", "mark", "sentence")  # its files have no header
QQP = ("question1", "question2", "is_duplicate")
FRACTION = re.compile(r"\d+\.\d+")


def read_table(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, row) of a TSV file with a header, or of JSON lines as ``read_rows`` does.

    CoLA's TSV has no header and is read as ``COLA``. QQP's has rows that a line end within a
    question cuts in two, and empty questions: they are left out, which is told.

    Raises:
        DataError: as ``read_rows``.
    """
    if path.suffix != ".tsv":
        yield from enumerate(read_rows(path), 1)
        return
    check_there(path)
    line = broken = 0
    try:
        with path.open(encoding=UTF8, newline="") as file:
            header = COLA if _is_cola(file.readline()) else None
            file.seek(0)
            reader = csv.DictReader(file, header, delimiter="\t", quoting=csv.QUOTE_NONE)
            line = 1 if reader.fieldnames else 0
            is_qqp = set(QQP) <= set(reader.fieldnames or ())
            for row in reader:
                line = reader.line_num
                if is_qqp and not all((row[name] or "").strip() for name in QQP):
                    broken += 1
                else:
                    yield line, {name: row[name] for name in reader.fieldnames or ()}
    except UnicodeDecodeError as error:
        raise not_utf8(path, line + 1, error) from error
    except csv.Error as error:
        raise DataError(f"{path}:{line + 1}: cannot be read as TSV: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: {error}") from error
    if broken:
        print(f"{path}: {broken} broken rows left out, as QQP's files have them", file=sys.stderr)


def _is_cola(line: str) -> bool:
    fields = line.rstrip("\r\n").split("\t")
    return len(fields) == len(COLA) and fields[1] in ("0", "1") and fields[2] in ("", "*")


def refuse_scores(row: Mapping[str, Any], label: str, path: Path, line: int) -> None:
    """Refuse a label column that has no classes, such as STS-B's.

    Raises:
        DataError: the value is a score; names file, line and field.
    """
    value = row.get(label)
    fraction = isinstance(value, float) and not value.is_integer()
    if fraction or (label == "score" and FRACTION.fullmatch(str(value))):
        raise DataError(
            f"{path}:{line}: field {label!r} is a score ({value}), no class: STS-B and other "
            "regression cannot be learned as classification, leave it out"
        )
