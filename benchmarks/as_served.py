"""What a variant of the ablations is worth to a user: with the stages after its outer loop.

`python -m benchmarks.ablations --served` makes the words, the gate and the memory of the activated
scope and of the full one, as `innerloop meta-train` does, and judges both with them. No artifact
may have a gate in full scope, so a server answers there by the adapter alone: compared as well.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from adapters.config import Gate
from adapters.encoder import Encoder
from adapters.encoder_folder import load_encoder
from adapters.rule_io import GateNumbers, gate_numbers
from adapters.words import Words, load_words
from benchmarks.trial import percent, table
from meta_training.evaluation.cells import Cell, TaskDrawer
from meta_training.evaluation.intervals import paired_bootstrap
from meta_training.evaluation.methods import MetaLearned
from meta_training.evaluation.report import right_figure
from meta_training.evaluation.run import evaluate, read_results
from meta_training.gating import calibrate_with
from meta_training.learner import Learner
from meta_training.pipeline import Workshop, make_gate, validation_drawer

CELLS: Final = {
    cell.name: cell
    for cell in (
        Cell("label", 5, 5),
        Cell("label", 10, 5),
        Cell("label", 20, 5),
        Cell("house_reply", 1, 5),
        Cell("house_reply", 3, 5),
    )
}
ALONE: Final = "the adapter alone"
SERVED: Final = "with gate and memory"
Values = dict[tuple[int, int], float]
"""By seed and task."""
_Found = dict[str, dict[tuple[str, str], Values]]  # by figure, then by cell and method


def served_ways(encoder: str | None) -> list[str]:
    """The ways to answer that are judged; ``encoder`` is a sentence encoder's name."""
    return [SERVED] if encoder is None else [SERVED, f"{SERVED}, {Path(encoder).name}"]


def judge(
    name: str,
    workshop: Workshop,
    learner: Learner,
    encoder: str | None,
    drawer: TaskDrawer,
    cells: Sequence[Cell],
    tasks: int,
    results: Path,
    of: str,
) -> None:
    """Judge a variant called ``name`` in every served way, where ``results`` lacks tasks.

    ``workshop`` is the variant's: its folder keeps words and gates. ``results`` and ``of`` are as
    of ``evaluate``.
    """
    names = [f"{name}; {way}" for way in served_ways(encoder)]
    wanted = {cell.name for cell in cells}
    rows = [row for row in read_results(results, of) if row["cell"] in wanted]
    done = Counter(row["method"] for row in rows if row["task"] < tasks)
    if all(done[one] >= tasks * len(cells) for one in names):
        return
    for method, gate in zip(names, _gates(workshop, learner, encoder), strict=True):
        learner.gate = gate
        served = MetaLearned(method, learner, recall=True, steps=(learner.part.steps,))
        evaluate([served], cells, drawer, tasks, results, of)


def _gates(workshop: Workshop, learner: Learner, encoder: str | None) -> list[Gate]:
    """The gate of every served way, made once, in their order."""
    recipe, corpus, folder = workshop.recipe, workshop.corpus, workshop.folder
    inner = recipe.inner.model_copy(update={"gate": True})  # in full scope too, to compare
    gated = replace(workshop, recipe=recipe.model_copy(update={"inner": inner}))
    path = folder / recipe.outer.algorithm / "words" / "words.safetensors"
    words = load_words(path, workshop.tokenizer) if path.exists() else None
    gate = _once(folder / "gate.json", words, None, lambda: make_gate(gated, learner))
    if encoder is None:
        return [gate]

    def sharper() -> Gate:
        drawer = validation_drawer(corpus, workshop.tokenizer, recipe.seed)
        return calibrate_with(learner, corpus, gate.words, drawer, recipe.seed, loaded)

    loaded = load_encoder(encoder, workshop.tokenizer)
    return [gate, _once(folder / f"gate-{loaded.name}.json", gate.words, loaded, sharper)]


def _once(
    path: Path, words: Words | None, encoder: Encoder | None, make: Callable[[], Gate | None]
) -> Gate:
    """The gate whose numbers ``path`` keeps, or a new one and its numbers there."""
    if path.exists():
        return GateNumbers.model_validate_json(path.read_bytes()).gate(words, encoder)
    gate = make()
    assert gate is not None
    path.write_text(json.dumps(gate_numbers(gate)), encoding="utf-8")
    return gate


def report(
    seeds: Sequence[tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]],
    activated: str,
    full: str,
    encoder: str | None,
) -> str:
    """Of every cell and way to answer both scopes, and full minus activated on the same tasks.

    ``seeds`` have their rows by the adapter alone and their served ones. The last difference is to
    full scope as a server has it, without gate or memory. In percent, with the paired bootstrap's
    interval over the tasks of all seeds.
    """
    found: _Found = defaultdict(lambda: defaultdict(dict))
    for seed, (alone, served) in enumerate(seeds):
        for row in alone:
            _take(found, seed, row, f"{row['method']}; {ALONE}")
        for row in served:
            _take(found, seed, row, row["method"])
            figures = row["figures"]
            if "choice_model" in figures:  # what the same adapter says without the memory
                name = row["method"].partition("; ")[0]
                bare = {**row, "figures": {"choice": figures["choice_model"]}}
                _take(found, seed, bare, f"{name}; {ALONE}")
    lines = []
    for cell in CELLS:
        for way in (ALONE, *served_ways(encoder)):
            places = [(cell, f"{scope}; {way}") for scope in (activated, full)]
            own, other = [found["right"][place] for place in places]
            if own:
                line = [cell, way, str(len(own)), *_percents(found["right"], places)]
                line += [more(other, own), more(found["right"][cell, f"{full}; {ALONE}"], own)]
                line += _percents(found["choice_memory"], places)
                lines.append(line + _percents(found["changed"], places))
    heads = ["", "answered by", "tasks", "activated, right %", "full, right %", "full minus it"]
    heads += ["full by its adapter alone minus it", "memory alone, activated %", "full %"]
    return table([*heads, "unrelated answers changed, activated %", "full %"], lines)


def _take(found: _Found, seed: int, row: Mapping[str, Any], method: str) -> None:
    figures = row["figures"]
    for figure, value in {**figures, "right": figures[right_figure(figures)] or 0.0}.items():
        if value is not None:
            found[figure][row["cell"], method][seed, row["task"]] = value


def _percents(
    values: Mapping[tuple[str, str], Values], places: Sequence[tuple[str, str]]
) -> list[str]:
    return [percent(list(values.get(place, {}).values())) for place in places]


def more(values: Values, others: Values) -> str:
    """The mean of what ``values`` have more than ``others`` on the same tasks, in percent."""
    apart = [values[task] - others[task] for task in sorted(values) if task in others]
    if not apart or values is others:
        return "–"
    low, high = paired_bootstrap(apart)
    return f"{100 * sum(apart) / len(apart):+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
