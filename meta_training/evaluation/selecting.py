"""Which of several artifacts learns tasks best, relative to a reference: the work of
``innerloop select``.

Knows artifacts, the tasks they can fairly be compared on, and the command's arguments once they are
checked.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from adapters.artifact import Artifact, load_artifact
from adapters.chat import ChatEncoder
from meta_training.corpus import Corpus
from meta_training.device import use_device
from meta_training.evaluation.bench import WEIGHTS
from meta_training.evaluation.cells import (
    COMPARED,
    Cell,
    TaskDrawer,
    drawable_cells,
)
from meta_training.evaluation.choosing import chosen_cells
from meta_training.evaluation.material import (
    EvaluationError,
    corpus_of,
    identity,
    material_of,
    recipe_of,
)
from meta_training.evaluation.relative import (
    Losses,
    QueryLoss,
    Relative,
    apart,
    by_cell,
    losses_of,
    relative,
)
from meta_training.evaluation.run import ResultsError, evaluate, read_results
from meta_training.exits import exit_code
from meta_training.kept_out import KEY, check_kept_out
from meta_training.learner import Learner
from meta_training.pipeline import held_out_drawer, validation_drawer
from meta_training.recipe import Recipe
from meta_training.recipe_parts import DataPart

# What a recipe says of its data that decides about no task but a persona's.
NO_QUERIES: Final = {"held_out_persona_share", "neighbours"}


@dataclass(frozen=True)
class Compared:
    """An artifact and its losses; ``score`` over all cells together."""

    folder: Path
    losses: Losses
    score: Relative
    cells: dict[str, Relative]


def select(arguments: argparse.Namespace) -> int:
    """Judge, resume, or only compare; see ``exit_code`` for what is returned."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    return exit_code("select", lambda: _select(arguments), EvaluationError, ResultsError)


def _select(arguments: argparse.Namespace) -> None:
    device = use_device(arguments.device)
    reference = load_artifact(arguments.reference, device, WEIGHTS)
    recipe = recipe_of(reference)
    corpus, drawer = _drawer(arguments, reference)
    cells = _cells(drawer, arguments.cells)
    results = arguments.results or arguments.reference.parent / "select.jsonl"
    folders = list(dict.fromkeys(arguments.artifacts))
    for folder in folders:  # all of them before hours of work
        artifact = load_artifact(folder)
        _check_fair(folder, recipe_of(artifact), arguments.reference, recipe, cells)
        check_kept_out((artifact.report or {}).get(KEY), corpus.kept_out, str(folder))
    counted = ChatEncoder(reference.tokenizer)
    kind = "held-out" if arguments.held_out else "validation"
    material = corpus.held_out_digest if arguments.held_out else corpus.validation_digest
    of = f"{identity(reference)}/{kind}/{arguments.seed}/{material}"

    def losses_on(artifact: Artifact) -> Losses:
        method, own = QueryLoss(Learner.from_artifact(artifact), counted), identity(artifact)
        evaluate([method], cells, drawer, arguments.tasks, results, f"{own}/{of}")
        names = {cell.name for cell in cells}
        found = losses_of(read_results(results, f"{own}/{of}"))
        return {
            (cell, task): loss
            for (cell, task), loss in found.items()
            if cell in names and task < arguments.tasks
        }

    least = losses_on(reference)
    compared = []
    for folder in folders:
        losses = losses_on(load_artifact(folder, device, WEIGHTS))
        compared.append(Compared(folder, losses, relative(losses, least), by_cell(losses, least)))
    ranking = sorted(compared, key=lambda each: (math.isnan(each.score.mean), each.score.mean))
    verdict = _verdict(ranking, least)
    _print(ranking, verdict, kind)
    if arguments.save is not None:
        told = _report(arguments, ranking, verdict, kind)
        arguments.save.parent.mkdir(parents=True, exist_ok=True)
        arguments.save.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", "utf-8")


def _drawer(arguments: argparse.Namespace, reference: Artifact) -> tuple[Corpus, TaskDrawer]:
    """The material and its tasks, in the reference's words, which are the same for all."""
    if arguments.held_out:
        corpus = corpus_of(reference, arguments.data)
        return corpus, held_out_drawer(corpus, reference.tokenizer, arguments.seed)
    corpus = material_of(reference, arguments.data)
    if not corpus.validation_intents and not corpus.validation_pairs:
        raise EvaluationError(
            f"{arguments.reference}: its recipe names no data.validation, so there are no "
            "validation tasks: take another reference, or --held-out for a last report"
        )
    return corpus, validation_drawer(corpus, reference.tokenizer, arguments.seed)


def _cells(drawer: TaskDrawer, words: Sequence[str]) -> list[Cell]:
    have = drawable_cells(drawer)
    usual = [cell for cell in COMPARED if cell in have]
    try:
        return usual if usual and not words else chosen_cells(drawer, words, None, [0])
    except ValueError as error:
        raise EvaluationError(str(error)) from error


def _check_fair(
    folder: Path, recipe: Recipe, reference: Path, other: Recipe, cells: Sequence[Cell]
) -> None:
    """Refuse an artifact that may have been trained on the reference's tasks."""
    for field in sorted(DataPart.model_fields.keys() - NO_QUERIES):
        own, theirs = getattr(recipe.data, field), getattr(other.data, field)
        if own != theirs:
            raise EvaluationError(
                f"{folder}: its recipe's data.{field} is {own}, that of {reference} is {theirs}: "
                "one may have been trained on what the other is judged by, so that nothing would "
                "follow from a comparison"
            )
    if recipe.data.tasks and recipe.seed != other.seed:
        raise EvaluationError(
            f"{folder}: its recipe's seed is {recipe.seed}, that of {reference} is {other.seed}: "
            "own tasks are split by it, so that one may have been trained on what the other is "
            "judged by"
        )
    split = (recipe.seed, recipe.data.held_out_persona_share)
    personas = any(cell.family == "persona" for cell in cells)
    if personas and split != (other.seed, other.data.held_out_persona_share):
        raise EvaluationError(
            f"{folder}: it was trained on other personas than {reference} (seed {recipe.seed} "
            f"against {other.seed}): leave persona cells out with --cells"
        )


def _verdict(ranking: Sequence[Compared], least: Losses) -> list[str]:
    """Which is best, and whether it can be told from the next and from the reference."""
    best = ranking[0]
    if math.isnan(best.score.mean):
        return ["Every artifact diverged on some task, so that none is best."]
    told = [f"Best: {best.folder}, S {_text(best.score)} on {best.score.tasks} tasks."]
    if best.losses != least and best.score.low <= 1 <= best.score.high:
        told.append("It cannot be told from the reference: the interval has 1 in it.")
    others = [each for each in ranking[1:] if not math.isnan(each.score.mean)]
    if others:
        behind = apart(others[0].losses, best.losses, least)
        sure = "It is ahead of" if behind.sure else "It cannot be told from"
        told.append(
            f"{sure} {others[0].folder}, the next: {behind.mean:+.3f} ({behind.low:+.3f} to "
            f"{behind.high:+.3f}) on the same tasks."
        )
    return told


def _print(ranking: Sequence[Compared], verdict: Sequence[str], kind: str) -> None:
    cells = list(ranking[0].cells)
    heads = ["artifact", "S", *cells, "mean L / mean L*", f"{kind} tasks"]
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for each in ranking:
        own = [_text(each.cells[cell]) for cell in cells]
        score = each.score
        row = [str(each.folder), _text(score), *own, _number(score.means), str(score.tasks)]
        print("| " + " | ".join(row) + " |")
    print()
    for sentence in verdict:
        print(sentence)


def _report(
    arguments: argparse.Namespace,
    ranking: Sequence[Compared],
    verdict: Sequence[str],
    kind: str,
) -> dict[str, Any]:
    return {
        "reference": str(arguments.reference),
        "tasks": kind,
        "seed": arguments.seed,
        "verdict": list(verdict),
        "artifacts": [
            {
                "artifact": str(each.folder),
                "score": each.score.told(),
                "cells": {cell: score.told() for cell, score in each.cells.items()},
            }
            for each in ranking
        ],
    }


def _text(score: Relative) -> str:
    if math.isnan(score.mean):
        return "diverged"
    return f"{_number(score.mean)} ({_number(score.low)} to {_number(score.high)})"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
