"""How well an artifact adapts to held-out tasks, beside alternatives: the work of
``innerloop evaluate``.

Knows methods, cells and reports, and the command's arguments once they are checked.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from adapters.artifact import Artifact, load_artifact
from meta_training.corpus import Corpus, files_of, held_out_only
from meta_training.data.rows import replace_text
from meta_training.device import use_device
from meta_training.evaluate_command import METHODS
from meta_training.evaluation.bench import TUNED, WEIGHTS, Bench
from meta_training.evaluation.cells import Cell
from meta_training.evaluation.examples_plot import examples_figure
from meta_training.evaluation.material import EvaluationError, corpus_of, identity, recipe_of
from meta_training.evaluation.page import render
from meta_training.evaluation.plots import save
from meta_training.evaluation.report import (
    ADAPTER,
    SERVED,
    Summary,
    differences,
    markdown,
    perplexity_lines,
    summarise,
)
from meta_training.evaluation.run import (
    ResultsError,
    count_others,
    evaluate,
    read_with_controls,
)
from meta_training.evaluation.splits import (
    SplitsError,
    check_splits,
    markdown_of_means,
    mean_over_splits,
)
from meta_training.exits import exit_code
from meta_training.recipe import RecipeError, problems, read_yaml, told_recipe
from meta_training.tasks.part import TaskPart


def judge(arguments: argparse.Namespace) -> int:
    """Evaluate, resume, or only sum up; see ``exit_code`` for what is returned."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    wrong = (EvaluationError, ResultsError, SplitsError)
    return exit_code("evaluate", lambda: _judge_all(arguments), *wrong)


def _judge_all(arguments: argparse.Namespace) -> None:
    """Evaluate each artifact, and give the mean of several, which are splits of one source."""
    folders = list(dict.fromkeys(arguments.artifacts))
    device = use_device(arguments.device)
    if len(folders) > 1:
        margin = arguments.gate_margin
        loaded = [
            (str(folder), recipe_of(_with_margin(load_artifact(folder), margin)))
            for folder in folders
        ]
        check_splits(loaded)
    summaries = []
    for folder in folders:
        own = argparse.Namespace(**vars(arguments), artifact=folder)
        summaries.append(_judge(own, device))
    if len(folders) > 1:
        print(markdown_of_means(mean_over_splits(summaries), len(folders)))


def _judge(arguments: argparse.Namespace, device: torch.device) -> Summary:
    margin: float = arguments.gate_margin
    artifact = load_artifact(arguments.artifact, device, WEIGHTS, arguments.encoder)
    artifact = _with_margin(artifact, margin)
    own = None if arguments.tasks is None else read_tasks(arguments.tasks)
    corpus = corpus_of(artifact, arguments.data) if own is None else _own(arguments, own)
    bench = Bench(arguments, artifact, corpus, device)
    cells = bench.cells()
    of_tasks = [] if own is None else [arguments.tasks.stem]
    of_gate = [] if artifact.encoder is None else [artifact.encoder]
    of_gate += [f"margin-{margin}"] if margin else []
    stem = "-".join(["results", *of_tasks, *of_gate])
    results = arguments.results or arguments.artifact.parent / f"{stem}.jsonl"
    judged = identity(artifact) + (f"/margin {margin}" if margin else "")
    of = f"{judged}/{arguments.seed}/{corpus.held_out_digest}"
    _tell_others(results, f"{judged}/{arguments.seed}", of)
    for name in arguments.methods:
        method, suited = bench.method(name), bench.cells_for(name, cells)
        place = of + bench.control(name)
        evaluate([method], suited, bench.drawer, arguments.episodes, results, place)
    rows = read_with_controls(results, of, {of + bench.control(name) for name in METHODS})
    best = SERVED if any(row["method"] == SERVED for row in rows) else ADAPTER
    served = (best, f"{artifact.rule.steps} steps")
    report = dict(artifact.report or {}) if own is None else _about(arguments.tasks, own, artifact)
    known = set(report.get("cells", ()))
    report |= _found(bench, cells, rows, served, report.get("cost", {}))
    report["seed"] = arguments.seed
    report["gate_margin"] = margin
    name = stem.replace("results", "report")
    # A report of some cells does not take the place of one of all, nor one of another gate.
    fewer = bool(known - set(report["cells"]))
    side = (own, artifact.encoder, arguments.results, margin or None)
    aside = fewer or any(each is not None for each in side)
    written = (results.parent if aside else arguments.artifact) / f"{name}.json"
    _write(written, report)
    print(f"report: {written}", file=sys.stderr)
    page = arguments.page or results.with_name(f"{name}.html")
    replace_text(page, render(report, _title(artifact), served))
    summary: Summary = report["cells"]
    print(markdown(summary))
    for line in perplexity_lines(report):
        print(line)
    if arguments.plot is not None:
        _plot(summary, served[1], arguments.plot)
    return summary


def _with_margin(artifact: Artifact, margin: float) -> Artifact:
    if artifact.rule.gate is None and margin:
        raise EvaluationError(f"{artifact.name} has no gate: judge it without --gate-margin")
    return artifact.with_margin(margin)


def _plot(summary: Summary, steps: str, path: Path) -> None:
    figure = examples_figure(summary, steps)
    if figure is None:
        raise EvaluationError(
            f"{path} is not drawn, the report is complete: quality against examples needs cells "
            "with two numbers of examples, as 1-shot and 5-shot: add some with --cells, and "
            "innerloop's adapter, recall, TF-IDF or LoRA with --methods"
        )
    save(figure, path)


def _found(
    bench: Bench,
    cells: Sequence[Cell],
    rows: Sequence[dict[str, Any]],
    served: tuple[str, str],
    costs_before: dict[str, Any],
) -> dict[str, Any]:
    """What a report has to tell; of ``rows``, which may be of more cells than ``cells``."""
    summary = summarise(rows)
    costs = {cell: cost for cell, cost in costs_before.items() if cell in summary}
    return {
        "cells": summary,
        "differences": differences(rows, served),
        **bench.perplexities(),
        "explained": bench.explained(cells),
        "drawn_from": bench.drawer.drawn_from,
        "cost": costs | bench.costs([cell for cell in cells if not cell.wrong_percent]),
    }


def _title(artifact: Artifact) -> str:
    """What a page calls the artifact, whose folder is mostly called artifact."""
    told, gate = told_recipe(artifact.report, artifact.name), artifact.rule.gate
    name = artifact.name if told is None else f"{told.name}, {told.outer.algorithm}"
    return f"{name}, gate margin {gate.margin}" if gate is not None and gate.margin else name


def _about(tasks: Path, parts: Sequence[TaskPart], artifact: Artifact) -> dict[str, Any]:
    """What a report on tasks that somebody brings begins with: the artifact's recipe is not theirs.

    ``trained_on``: files of theirs that its recipe reads too.
    """
    told = told_recipe(artifact.report, artifact.name)
    read = set() if told is None else files_of(told.data)
    return {
        "tasks": [part.model_dump(mode="json") for part in parts],
        "tasks_file": tasks.name,
        "trained_on": sorted({part.place for part in parts} & read),
        "recipe": None,
    }


def read_tasks(path: Path) -> list[TaskPart]:
    """The tasks of a YAML file, in the form of a recipe's ``data.tasks``.

    Raises:
        RecipeError: it cannot be read, or is no such list; names what is wrong.
    """
    content = read_yaml(path, "tasks")
    try:
        return TypeAdapter(list[TaskPart]).validate_python(content)
    except ValidationError as error:
        raise RecipeError(f"{path} is no list of tasks:\n{problems(error)}") from error


def _own(arguments: argparse.Namespace, parts: list[TaskPart]) -> Corpus:
    needed = TUNED & set(arguments.methods)
    if needed:
        raise EvaluationError(
            f"{' and '.join(sorted(needed))} is tuned on a recipe's validation tasks, which "
            "--tasks does not have: name other --methods"
        )
    return held_out_only(arguments.data, parts, arguments.seed)


def _tell_others(results: Path, artifact: str, of: str) -> None:
    others = count_others(results, artifact, of)
    if others:
        print(
            f"{results}: {others} lines are of this artifact on other data than there is now, or "
            "from before data was noted; they do not count",
            file=sys.stderr,
        )


def _write(path: Path, report: dict[str, Any]) -> None:
    replace_text(path, _lines(report, levels=3) + "\n")  # a line for each method of a cell


def _lines(value: Any, levels: int) -> str:
    if levels == 0 or not isinstance(value, dict):
        return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    lines = [f"{json.dumps(key)}:{_lines(value[key], levels - 1)}" for key in sorted(value)]
    return "{\n" + ",\n".join(lines) + "\n}"
