"""`python -m benchmarks.ablations`: what an outer loop's parts buy a language model.

A small model is pre-trained once a seed, then every variant of the outer loop trains it for the
same CPU seconds, one at a time (full scope also for as many steps as the activated one). Judged on
tasks held out of every stage, the same for all, by the adapter alone: no gate, no memory. Beside
them LoRA on the pre-trained and on the multi-task base, its step size tuned on validation tasks.
Small and short: it compares outer loops, and says how fast they begin to learn. With ``--served``
the two scopes alone, as users get them (``as_served``). A run that is stopped goes on. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from adapters.encoder_folder import EncoderError
from benchmarks import as_served
from benchmarks.trial import percent, table
from meta_training.evaluation.cells import Cell
from meta_training.evaluation.methods import MetaLearned, Method, tuned_lora
from meta_training.evaluation.report import right_figure
from meta_training.evaluation.run import evaluate, read_results
from meta_training.learner import Learner
from meta_training.pipeline import (
    Workshop,
    build_learner,
    build_outer_loop,
    embed_questions,
    held_out_drawer,
    open_workshop,
    validation_drawer,
)
from meta_training.pretrain import pretrain
from meta_training.recipe import Recipe, RecipeError, load_recipe
from meta_training.tasks.sources import DataError

RECIPE = Path(__file__).parents[1] / "meta_training" / "recipes" / "innerloop-small.yaml"
CELLS = (Cell("label", 5, 5), Cell("house_reply", 1, 5), Cell("house_reply", 3, 5))
TRIED_STEPS = 4  # outer steps that are timed, to know how many the seconds allow
EXACT = "MAML, exact"
MULTITASK = "multi-task"
FULL_AS_LONG = "exact, full scope, as many steps"
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # outer part, inner part
    EXACT: ({}, {}),
    "MAML, first order": ({"algorithm": "fomaml"}, {}),
    "MAML++": ({"algorithm": "maml++"}, {}),
    "Meta-SGD": ({"algorithm": "meta-sgd"}, {}),
    "ANIL": ({"algorithm": "anil"}, {}),
    "Reptile": ({"algorithm": "reptile"}, {}),
    MULTITASK: ({"algorithm": "multitask"}, {}),
    "exact, K = 1": ({}, {"steps": 1}),
    "exact, step sizes not learned": ({"step_size_learning_rate": 0.0}, {}),
    "exact, start not learned": ({"adapter_learning_rate": 0.0}, {}),
    "exact, base frozen": ({"base": "frozen"}, {}),
    "exact, full scope": ({}, {"scope": "full"}),
    FULL_AS_LONG: ({}, {"scope": "full"}),
    "exact, rank 4": ({}, {"rank": 4}),
    "exact, upper two layers of three": ({}, {"top_layers": 2}),  # ANIL: the uppermost
    "exact, no locality": ({"locality_weight": 0.0}, {}),
    "exact, hard classes more often": ({"selection": "difficulty"}, {}),
    "exact, two batches a step": ({"batches": 2}, {}),
    "exact, two batches by agreement": ({"batches": 2, "selection": "agreement"}, {}),
    "no outer loop": ({"steps": 0}, {}),
}
LORA = {"LoRA, pre-trained base": "no outer loop", "LoRA, multi-task base": MULTITASK}


class Ablations:
    """One seed's pre-trained model, and what every variant makes of it."""

    def __init__(self, recipe: Recipe, data: Path, folder: Path, cpu_s: float, tasks: int) -> None:
        """Pre-train, or load what an earlier run did, in ``folder``."""
        self._recipe, self._cpu_s, self._tasks = recipe, cpu_s, tasks
        self._workshop = open_workshop(recipe, data, folder)
        embed_questions(self._workshop, build_learner(self._workshop))
        self._results, self._served = folder / "results.jsonl", folder / "served.jsonl"
        tokenizer, corpus = self._workshop.tokenizer, self._workshop.corpus
        self._held_out = held_out_drawer(corpus, tokenizer, seed=1000)
        self._validation = validation_drawer(corpus, tokenizer, seed=77)

    def run(self, name: str) -> Learner:
        """Train and judge a variant, and LoRA on its base where it is a control's."""
        learner = self._trained(name)
        self._judge(MetaLearned(name, learner, steps=(learner.part.steps,)))
        for control, base in LORA.items():
            if base == name:
                self._judge(tuned_lora(control, learner, self._validation))
        return learner

    def serve(
        self, name: str, learner: Learner, encoder: str | None, cells: Sequence[Cell]
    ) -> None:
        """Judge a trained variant with the gate and the memory that come after."""
        workshop = replace(
            self._workshop,
            model=learner.model,
            tokenizer=learner.encoder.tokenizer,
            folder=self._folder(name) / str(self.steps(name)),
        )
        as_served.judge(
            name,
            workshop,
            learner,
            encoder,
            self._held_out,
            cells,
            self._tasks,
            self._served,
            str(self._cpu_s),
        )

    def _judge(self, method: Method) -> None:
        evaluate([method], CELLS, self._held_out, self._tasks, self._results, str(self._cpu_s))

    def _trained(self, name: str) -> Learner:
        if VARIANTS[name][0].get("steps") == 0:
            return self._start(name, 0)[0]
        plan = self._plan(name)
        if not plan.exists():
            with tempfile.TemporaryDirectory() as place:
                spent_s = self._train(name, TRIED_STEPS, Path(place))[1] / TRIED_STEPS
            plan.parent.mkdir(parents=True, exist_ok=True)
            plan.write_text(json.dumps({"steps": max(1, round(self._cpu_s / spent_s))}))
        steps = self.steps(name)
        return self._train(name, steps, self._folder(name) / str(steps))[0]

    def _folder(self, name: str) -> Path:
        return self._workshop.folder / name.replace(" ", "-").replace(",", "")

    def _plan(self, name: str) -> Path:
        """Says how many outer steps the seconds allow; beside what they make."""
        return self._folder(EXACT if name == FULL_AS_LONG else name) / f"{self._cpu_s:g}.json"

    def _start(self, name: str, steps: int) -> tuple[Learner, Workshop]:
        outer, inner = VARIANTS[name]
        parts = self._recipe.model_dump()
        parts["inner"] |= inner
        parts["outer"] |= {"steps": steps} | outer
        recipe = Recipe.model_validate(parts)
        base = self._workshop.folder / "pretrained"
        model, tokenizer = pretrain(recipe, self._workshop.corpus, base)
        workshop = replace(self._workshop, recipe=recipe, model=model, tokenizer=tokenizer)
        learner = build_learner(workshop)
        embed_questions(workshop, learner)
        return learner, workshop

    def _train(self, name: str, steps: int, folder: Path) -> tuple[Learner, float]:
        learner, workshop = self._start(name, steps)
        loop = build_outer_loop(replace(workshop, folder=folder), learner)
        before_s = time.process_time()
        loop.run()
        return learner, time.process_time() - before_s

    def rows(self) -> list[dict[str, Any]]:
        return read_results(self._results, str(self._cpu_s))

    def served_rows(self) -> list[dict[str, Any]]:
        return read_results(self._served, str(self._cpu_s))

    def steps(self, name: str) -> int:
        """Outer steps that a variant took."""
        plan = self._plan(name)
        return int(json.loads(plan.read_text())["steps"]) if plan.exists() else 0


def report(found: Sequence[Ablations]) -> str:
    """One table: of every cell, right answers, and how many more than exact MAML's.

    Tasks of all seeds together; differences by the paired bootstrap over tasks.
    """
    right: dict[str, dict[str, dict[tuple[int, int], float]]] = {cell.name: {} for cell in CELLS}
    changed: dict[str, list[float]] = defaultdict(list)
    seeds: dict[str, set[int]] = defaultdict(set)
    for seed, one in enumerate(found):
        for row in one.rows():
            name, figures = _name(row["method"], row["checkpoint"]), row["figures"]
            of_cell = right[row["cell"]].setdefault(name, {})
            of_cell[seed, row["task"]] = figures[right_figure(figures)] or 0.0
            seeds[name].add(seed)
            if figures["changed"] is not None:
                changed[name].append(figures["changed"])
    heads = ["", "outer steps", "models"]
    for cell in CELLS:
        heads += [f"{cell.name}, right %", "minus exact"]
    lines = []
    for name, models in seeds.items():
        steps = sum(found[seed].steps(name) for seed in models) / len(models)
        line = [name, f"{steps:.0f}" if steps else "–", str(len(models))]
        for cell in CELLS:
            line += _beside(right[cell.name].get(name, {}), right[cell.name].get(EXACT, {}))
        lines.append([*line, percent(changed[name])])
    return table([*heads, "unrelated answers changed %"], lines)


def _beside(values: as_served.Values, exact: as_served.Values) -> list[str]:
    """Their mean, and the mean of what they have more on the same tasks, in percent."""
    return [percent(list(values.values())), as_served.more(values, exact)]


def _name(method: str, checkpoint: str) -> str:
    return f"{method}, {checkpoint}" if method in LORA else method


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablations", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="prepared data folder")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/ablations"), help="where runs are kept"
    )
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--cpu-s", type=float, default=600.0, help="CPU seconds of an outer loop")
    parser.add_argument("--seeds", type=int, default=3, help="pre-trained models (default: 3)")
    parser.add_argument("--tasks", type=int, default=60, help="held-out tasks a cell (default: 60)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument(
        "--served", action="store_true", help="activated and full scope with gate and memory"
    )
    parser.add_argument("--encoder", metavar="NAME", help="with --served: with that encoder too")
    every = list(as_served.CELLS)
    parser.add_argument("--cells", nargs="+", choices=every, default=every, help="with --served")
    parsed = parser.parse_args(argv)
    torch.set_num_threads(1)
    found: list[Ablations] = []
    try:
        recipe = load_recipe(parsed.recipe)
        for seed in range(parsed.seeds):
            one = recipe.model_copy(update={"seed": seed})
            place = parsed.out / f"seed{seed}"
            found.append(Ablations(one, parsed.data, place, parsed.cpu_s, parsed.tasks))
            wanted = (FULL_AS_LONG,) if parsed.served else parsed.variants
            for name in dict.fromkeys([EXACT, *wanted]):
                print(f"seed {seed}: {name}", file=sys.stderr, flush=True)
                learner = found[-1].run(name)
                if parsed.served:
                    cells = [as_served.CELLS[cell] for cell in parsed.cells]
                    found[-1].serve(name, learner, parsed.encoder, cells)
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here", file=sys.stderr)
    except (DataError, EncoderError, RecipeError, OSError) as error:
        print(f"benchmarks.ablations: {error}", file=sys.stderr)
        return 2
    if parsed.served:
        rows = [(one.rows(), one.served_rows()) for one in found]
        print(as_served.report(rows, EXACT, FULL_AS_LONG, parsed.encoder))
    elif found and any(row["method"] == EXACT for row in found[0].rows()):
        print(report(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
