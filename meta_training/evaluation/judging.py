"""How well an artifact adapts to held-out tasks, beside alternatives: the work of
``innerloop evaluate``.

Knows methods, cells and reports, and the command's arguments once they are checked.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedModel

from adapters.artifact import Artifact, load_artifact
from adapters.base_model import load_base
from adapters.chat import ChatEncoder
from adapters.state import fingerprint
from meta_training.algorithms.metric import Matching, Prototypical, Siamese
from meta_training.corpus import Corpus, files_of, held_out_only, load_corpus
from meta_training.data.rows import replace_text
from meta_training.device import use_device
from meta_training.evaluate_command import METHODS, NEEDED
from meta_training.evaluation.cells import (
    Cell,
    chosen_cells,
    drawable_cells,
    held_out_questions,
)
from meta_training.evaluation.cost import adaptation_costs
from meta_training.evaluation.intervals import interval
from meta_training.evaluation.methods import (
    InContext,
    MetaLearned,
    Method,
    NearestTaught,
    Shown,
    TfidfCentroid,
    tuned_lora,
)
from meta_training.evaluation.page import render
from meta_training.evaluation.plots import examples_figure, save
from meta_training.evaluation.report import (
    ADAPTER,
    SERVED,
    Summary,
    differences,
    markdown,
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
from meta_training.kept_out import KEY, check_kept_out
from meta_training.learner import Learner
from meta_training.pipeline import held_out_drawer, validation_drawer
from meta_training.pretrain import TextRows, language_loss
from meta_training.recipe import Recipe, RecipeError, problems, read_yaml, told_recipe
from meta_training.recipe_parts import InnerPart, OuterPart
from meta_training.tasks.part import TaskPart

WEIGHTS = torch.float32  # on a GPU too, where a server has 16 bits: figures of all devices compare
TUNED = {"lora", "multitask-lora"}  # on validation tasks
LABELS_ONLY = ("tfidf", "prototypical", "matching", "siamese", "frozen")


class EvaluationError(ValueError):
    """An artifact cannot be judged; the message says why, or what to change."""


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
        loaded = [(str(folder), recipe_of(load_artifact(folder))) for folder in folders]
        check_splits(loaded)
    summaries = []
    for folder in folders:
        own = argparse.Namespace(**vars(arguments), artifact=folder)
        summaries.append(_judge(own, device))
    if len(folders) > 1:
        print(markdown_of_means(mean_over_splits(summaries), len(folders)))


def _judge(arguments: argparse.Namespace, device: torch.device) -> Summary:
    artifact = load_artifact(arguments.artifact, device, WEIGHTS)
    own = None if arguments.tasks is None else read_tasks(arguments.tasks)
    corpus = corpus_of(artifact, arguments.data) if own is None else _own(arguments, own)
    bench = _Bench(arguments, artifact, corpus, device)
    cells = bench.cells()
    stem = "results" if own is None else f"results-{arguments.tasks.stem}"
    results = arguments.results or arguments.artifact.parent / f"{stem}.jsonl"
    of = f"{identity(artifact)}/{arguments.seed}/{corpus.held_out_digest}"
    _tell_others(results, f"{identity(artifact)}/{arguments.seed}", of)
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
    name = stem.replace("results", "report")
    # A report of some cells does not take the place of one of all.
    aside = own is not None or arguments.results is not None or bool(known - set(report["cells"]))
    written = (results.parent if aside else arguments.artifact) / f"{name}.json"
    _write(written, report)
    print(f"report: {written}", file=sys.stderr)
    page = arguments.page or results.with_name(f"{name}.html")
    replace_text(page, render(report, _title(artifact), served))
    summary: Summary = report["cells"]
    if arguments.plot is not None:
        save(examples_figure(summary, served[1]), arguments.plot)
    print(markdown(summary))
    print(json.dumps(report["perplexity"]))
    return summary


def _found(
    bench: _Bench,
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
        "perplexity": bench.perplexities(),
        "drawn_from": bench.drawer.drawn_from,
        "cost": costs | bench.costs([cell for cell in cells if not cell.wrong_percent]),
    }


def _title(artifact: Artifact) -> str:
    """What a page calls the artifact, whose folder is mostly called artifact."""
    told = told_recipe(artifact.report, artifact.name)
    return artifact.name if told is None else f"{told.name}, {told.outer.algorithm}"


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


def corpus_of(artifact: Artifact, data: Path) -> Corpus:
    """The material that ``artifact`` was made from, and what was held out of it.

    Raises:
        EvaluationError: its report does not say what that was, or too little was held out.
        DataError: something else was.
    """
    name, corpus = artifact.name, material_of(artifact, data)
    if not held_out_questions(corpus):
        raise EvaluationError(f"{name}: its recipe holds out nothing of {data} to judge it by")
    return corpus


def material_of(artifact: Artifact, data: Path) -> Corpus:
    """The material that ``artifact`` was made from, split as it was then.

    Raises:
        EvaluationError: its report does not say what that was.
        DataError: a file is missing, broken or split in another way.
    """
    recipe = recipe_of(artifact)
    corpus = load_corpus(data, recipe.data, recipe.seed)
    check_kept_out((artifact.report or {}).get(KEY), corpus.kept_out, recipe.name)
    return corpus


def recipe_of(artifact: Artifact) -> Recipe:
    """The recipe that ``artifact`` was made by.

    Raises:
        EvaluationError: its report does not say.
    """
    try:
        recipe = told_recipe(artifact.report, artifact.name)
    except RecipeError as error:
        raise EvaluationError(str(error)) from error
    if recipe is None:
        raise EvaluationError(
            f"{artifact.name}: report.json has no recipe, so nobody knows what was held out "
            "of its training: evaluate a folder that `innerloop meta-train` made"
        )
    return recipe


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


def identity(artifact: Artifact) -> str:
    """What lines of results know an artifact by: its base, its start and its rule."""
    return f"{artifact.fingerprint[:16]}/{artifact.rule_hash[:16]}"


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


class _Bench:
    """The methods of a report, made when they are asked for, and the tasks they share."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        artifact: Artifact,
        corpus: Corpus,
        device: torch.device,
    ) -> None:
        self._arguments = arguments
        self._artifact = artifact
        self._corpus = corpus
        self.drawer = held_out_drawer(corpus, artifact.tokenizer, arguments.seed)
        # Loaded before hours of work, so that a wrong folder shows at once.
        base, control = arguments.pretrained, arguments.multitask
        self._base = load_base(base, device, WEIGHTS) if base else None
        self._control = load_artifact(control, device, WEIGHTS) if control else None

    def cells(self) -> list[Cell]:
        """The cells that are asked for. Raises EvaluationError where there are none."""
        asked = self._arguments
        try:
            return chosen_cells(
                drawable_cells(self.drawer), asked.cells, asked.queries, asked.wrong
            )
        except ValueError as error:
            raise EvaluationError(str(error)) from error

    def method(self, name: str) -> Method:
        makers: dict[str, Callable[[], Method]] = {
            "ours": lambda: MetaLearned(ADAPTER, self._ours()),
            "ours-recall": lambda: MetaLearned(SERVED, self._ours(), recall=True),
            "ours-prompt": lambda: MetaLearned(
                f"{SERVED} and the examples in the prompt", self._ours(), True, self._shown()
            ),
            "tfidf": TfidfCentroid,
            "prototypical": lambda: NearestTaught(
                "nearest prototype, this base", self._ours(), Prototypical()
            ),
            "matching": lambda: NearestTaught(
                "matching network, this base", self._ours(), Matching(self._outer().sharpness)
            ),
            "siamese": lambda: NearestTaught(
                "siamese network, this base", self._ours(), Siamese(self._outer().margin)
            ),
            "frozen": lambda: NearestTaught(
                "nearest prototype, pre-trained base", self._plain(), Prototypical()
            ),
            "in-context": lambda: InContext("examples in the prompt", self._plain(), self._shown()),
            "lora": lambda: self._tuned("LoRA, pre-trained base", self._plain()),
            "multitask-lora": lambda: self._tuned("LoRA, multi-task base", self._multitask()),
        }
        return makers[name]()

    def cells_for(self, name: str, cells: Sequence[Cell]) -> list[Cell]:
        """Cells a method can be judged on: some only pick labels."""
        return [cell for cell in cells if name not in LABELS_ONLY or self.drawer.picks(cell.family)]

    def control(self, name: str) -> str:
        """What a method's results depend on beside artifact and tasks, to go on with."""
        needed = NEEDED.get(name)
        if needed == "pretrained" and self._base is not None:
            control = fingerprint(self._base.model)[:16]
        elif needed == "multitask" and self._control is not None:
            control = identity(self._control)
        else:
            return ""
        tuned = f"/{self._corpus.validation_digest}" if name in TUNED else ""
        return f"/{needed}={control}{tuned}"

    def costs(self, cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
        """What adapting to a task of each cell costs; see ``adaptation_costs``."""
        return adaptation_costs(self._ours(), self.drawer, cells)

    def perplexities(self) -> dict[str, float]:
        """Per token on held-out dialogues, where there are some, adapters off."""
        if not self._corpus.test_dialogues:
            return {}
        models = {"innerloop": self._artifact.model}
        if self._base:
            models["pre-trained"] = self._base.model
        return {name: self._perplexity(model) for name, model in models.items()}

    def _perplexity(self, model: PreTrainedModel) -> float:
        tokenizer = self._artifact.tokenizer
        held_out = Corpus(train_dialogues=self._corpus.test_dialogues)
        rows = TextRows(held_out, tokenizer, 128, seed=7, dialogue_share=1.0)
        with torch.no_grad():
            losses = [float(language_loss(model, rows.batch(16))) for _ in range(10)]
        return round(math.exp(interval(losses)[0]), 3)

    def _ours(self) -> Learner:
        return Learner.from_artifact(self._artifact)

    def _outer(self) -> OuterPart:
        """What the artifact was made by; the defaults where that is not told."""
        told = told_recipe(self._artifact.report, self._artifact.name)
        return OuterPart() if told is None else told.outer

    def _shown(self) -> Shown:
        return Shown(self._artifact.tokenizer, self._artifact.context_tokens)

    def _plain(self) -> Learner:
        assert self._base is not None
        spec = self._artifact.spec
        part = InnerPart(rank=spec.rank, targets=list(spec.targets), scope=spec.scope, anchors=0)
        return Learner(self._base.model, ChatEncoder(self._base.tokenizer), part, [], seed=0)

    def _multitask(self) -> Learner:
        assert self._control is not None
        learner = Learner.from_artifact(self._control)
        learner.anchor_examples = []
        return learner

    def _tuned(self, name: str, learner: Learner) -> Method:
        """Plain LoRA at the learning rate that is best on validation tasks after most steps."""
        drawer = validation_drawer(self._corpus, self._artifact.tokenizer, seed=77)
        method = tuned_lora(name, learner, drawer)
        print(f"{name}: learning rate {method.learning_rate:g}", file=sys.stderr)
        return method
