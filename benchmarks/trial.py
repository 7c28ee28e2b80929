"""What benchmarks of quality share: arguments, drawn tasks, kept records, means in tables.

A record is what one task gave, as JSON, in a file of its own, so that a run that was stopped goes
on, and says what it has until then. Knows nothing about what is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from adapters.artifact import Artifact, ArtifactError, load_artifact
from meta_training.evaluation.cells import TaskDrawer
from meta_training.evaluation.intervals import interval
from meta_training.evaluation.material import EvaluationError, corpus_of
from meta_training.pipeline import held_out_drawer, validation_drawer
from meta_training.tasks.sources import DataError
from server.settings import MODELS

HELD_OUT_SEED = 1000  # of the tasks, the one that `innerloop evaluate` draws
VALIDATION_SEED = 77  # of the tasks that numbers are chosen on
TINY_REPORT = MODELS / "innerloop-tiny" / "report.json"
Record = dict[str, Any]


class TrialError(ValueError):
    """The benchmark cannot begin; the message says why."""


@dataclass(frozen=True)
class Trial:
    """A model, the tasks that it is tried on, and where their records are kept."""

    artifact: Artifact
    drawer: TaskDrawer
    keep: Path

    def records(self, names: Iterable[str], make: Callable[[str], list[Record]]) -> list[Record]:
        """Records of every name, made where none are kept."""
        found: list[Record] = []
        for name in tqdm(list(names), desc="tasks", file=sys.stderr):
            found += self._kept(name) or self._keep(name, make(name))
        return found

    async def record(
        self, name: str, make: Callable[[], Coroutine[None, None, list[Record]]]
    ) -> list[Record]:
        """Records of one name, made on an event loop where none are kept."""
        return self._kept(name) or self._keep(name, await make())

    def _kept(self, name: str) -> list[Record]:
        file = self.keep / f"{name}.json"
        return list(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else []

    def _keep(self, name: str, records: list[Record]) -> list[Record]:
        self.keep.mkdir(parents=True, exist_ok=True)
        partial = self.keep / f"{name}.partial"
        partial.write_text(json.dumps(records), encoding="utf-8")
        partial.replace(self.keep / f"{name}.json")  # whole, or not at all
        return records


def arguments(module: str, description: str | None, tasks: int) -> argparse.ArgumentParser:
    """The arguments that all of them take; ``tasks`` are drawn unless others are asked for."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=description)
    parser.add_argument("--model", type=Path, default=MODELS / "innerloop-tiny", metavar="PATH")
    parser.add_argument("--data", type=Path, default=Path("data"), help="prepared data folder")
    parser.add_argument("--tasks", type=int, default=tasks, help="default: %(default)s")
    parser.add_argument(
        "--keep",
        type=Path,
        default=Path("runs") / module,
        help="a file for each task that is done; another model needs another folder",
    )
    return parser


def open_trial(parsed: argparse.Namespace, validation: bool = False) -> Trial:
    """Load the model and its held-out tasks, or the ``validation`` ones that numbers are chosen on.

    Of a model that no recipe made, the tasks are those of innerloop-tiny.

    Raises:
        TrialError: no usable model or data.
    """
    try:
        artifact = load_artifact(parsed.model)
        # Who was not made by a recipe saw none of this material there: any recipe's will do.
        made = (artifact.report or {}).get("recipe")
        held = artifact if made else replace(artifact, report=json.loads(TINY_REPORT.read_text()))
        corpus = corpus_of(held, parsed.data)
        draw = validation_drawer if validation else held_out_drawer
        seed = VALIDATION_SEED if validation else HELD_OUT_SEED
        return Trial(artifact, draw(corpus, artifact.tokenizer, seed), parsed.keep)
    except (ArtifactError, EvaluationError, DataError, OSError) as error:
        raise TrialError(str(error)) from error


def percent(values: Sequence[float]) -> str:
    """Mean of shares over tasks with its 95% interval, in percent; a dash where there are none."""
    if not values:
        return "–"
    mean, half = interval([100 * value for value in values])
    return f"{mean:.1f} ± {half:.1f}"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])
