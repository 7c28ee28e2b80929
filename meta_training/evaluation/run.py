"""Runs methods over cells and keeps one line per task and checkpoint, so a stopped run goes on.

Knows cells and methods; knows nothing about how results are summed up.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from meta_training.evaluation.cells import Cell, TaskDrawer
from meta_training.evaluation.methods import Method

# Support rows laid out together: about as many tokens, labels being a tenth of a reply.
ROWS_AT_ONCE = {"label": 480, "house_reply": 160, "persona": 160}  # of others 100


class ResultsError(ValueError):
    """A results file cannot be read; the message names file and line."""


def evaluate(
    methods: Sequence[Method],
    cells: Sequence[Cell],
    drawer: TaskDrawer,
    episodes: int,
    results: Path,
    of: str,
    leave: bool = True,
) -> None:
    """Score every method on ``episodes`` tasks of every cell, appending to ``results``.

    Tasks that ``results`` has already are not run again. Ctrl-C keeps what is done.

    Args:
        of: what is judged on which tasks; lines of ``results`` of anything else do not count.
        leave: whether the progress bar stays when all is done.

    Raises:
        ResultsError: ``results`` holds something else.
    """
    results.parent.mkdir(parents=True, exist_ok=True)
    done = {
        (row["cell"], row["method"], row["task"], row["checkpoint"])
        for row in read_results(results, of)
    }
    total = len(methods) * len(cells) * episodes
    with results.open("a+b") as file, tqdm(total=total, desc="evaluate", leave=leave) as bar:
        file.truncate(_whole_lines_bytes(results))
        for cell in cells:
            for method in methods:
                bar.set_postfix_str(f"{cell.name}, {method.name}")
                missing = [
                    index
                    for index in range(episodes)
                    if not {(cell.name, method.name, index, c) for c in method.checkpoints} <= done
                ]
                bar.update(episodes - len(missing))
                for indices in chunks(missing, tasks_at_once(cell)):
                    rows = _rows(method, cell, drawer, indices, of)
                    file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
                    file.flush()
                    bar.update(len(indices))


def tasks_at_once(cell: Cell) -> int:
    """How many tasks of ``cell`` are laid out together."""
    return max(1, ROWS_AT_ONCE.get(cell.family, 100) // (cell.ways * cell.shots))


def read_results(path: Path, of: str) -> list[dict[str, Any]]:
    """Every line of a results file that belongs to ``of``; none where there is no file yet.

    A last line that a stopped run left half-written is passed over: its task runs again.

    Raises:
        ResultsError: another line is no result.
    """
    return [row for row in _lines(path) if row.get("of") == of]


def read_with_controls(path: Path, of: str, controls: Collection[str]) -> list[dict[str, Any]]:
    """The lines of ``of``, and those of methods that need a control, whose ``of`` goes on with it.

    A control is written as ``/what=which``. Lines of another than ``controls`` name do not count;
    of what they do not name, those of the last that was judged count.

    Raises:
        ResultsError: as of ``read_results``.
    """
    named = {control.partition("=")[0] for control in controls}
    own = [
        row
        for row in _lines(path)
        if row.get("of") in controls
        or (_is_under(row.get("of"), of) and row["of"].partition("=")[0] not in named)
    ]
    last = {row["method"]: row["of"] for row in own}
    return [row for row in own if row["of"] == last[row["method"]]]


def count_others(path: Path, artifact: str, of: str) -> int:
    """Lines whose ``of`` begins as ``artifact`` does, but not as ``of``: they count no more."""
    return sum(
        _is_under(row.get("of"), artifact) and not _is_under(row.get("of"), of)
        for row in _lines(path)
    )


def _is_under(name: object, above: str) -> bool:
    """Whether an ``of`` is ``above`` or goes on from it."""
    return f"{name}/".startswith(f"{above}/")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    whole = path.read_bytes()[: _whole_lines_bytes(path)]
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise _no_result(path, number, error) from error
        if not isinstance(row, dict):
            raise _no_result(path, number, f"{type(row).__name__} instead of an object")
        yield row


def _no_result(path: Path, number: int, why: object) -> ResultsError:
    return ResultsError(f"{path}:{number} is no result of an evaluation ({why}): take another file")


def _whole_lines_bytes(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1


def _rows(
    method: Method, cell: Cell, drawer: TaskDrawer, indices: list[int], of: str
) -> Iterator[dict[str, Any]]:
    tasks = [drawer.draw(cell, index) for index in indices]
    for checkpoint, scores in method.scores(tasks).items():
        for index, figures in zip(indices, scores, strict=True):
            yield {
                "of": of,
                "cell": cell.name,
                "method": method.name,
                "checkpoint": checkpoint,
                "task": index,
                # JSON has no NaN, which a method that diverged scores.
                "figures": {k: v if math.isfinite(v) else None for k, v in figures.items()},
            }


def chunks(values: list[int], size: int) -> Iterator[list[int]]:
    """``values`` in order, ``size`` at a time; the last may be fewer."""
    for start in range(0, len(values), size):
        yield values[start : start + size]
