"""`python -m benchmarks.warm_start`: does starting from known tasks' adapters help a new session?

Adapts an artifact to many tasks of its training intents, keeps where that led, and starts
validation tasks from the attention-weighted mix of the nearest ones' adapters instead of
session_init. The adapter alone answers: no gate, no memory. Prints Markdown: right answers after
some inner steps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from adapters.artifact import ArtifactError, load_artifact
from adapters.inner_loop import adapt
from adapters.state import Tensors, repeat
from meta_training.evaluation.cells import Cell, Task, TaskDrawer
from meta_training.evaluation.intervals import interval
from meta_training.evaluation.judge import Judge
from meta_training.evaluation.material import EvaluationError, corpus_of
from meta_training.learner import Learner
from meta_training.pipeline import make_families, validation_drawer
from meta_training.tasks.batches import encode_turn
from meta_training.tasks.episodes import unrelated_questions
from meta_training.tasks.sources import DataError
from meta_training.warm_start import KnownTasks, task_key, warm_start
from server.settings import MODELS

CELLS = tuple(
    Cell(family, ways, shots)
    for family, ways in (("house_reply", 1), ("persona", 3), ("label", 5))
    for shots in (1, 3)
)
NEAREST = (1, 8)
STEPS = (0, 1, 5)
AT_ONCE = 8  # tasks


@torch.no_grad()
def keys_of(learner: Learner, tasks: Sequence[Task]) -> torch.Tensor:
    keys = []
    for task in tasks:
        prompts = [encode_turn(turn, learner.encoder).prompt for turn in task.episode.support]
        keys.append(task_key(learner.summaries(prompts)))
    return torch.stack(keys)


def adapted(learner: Learner, judge: Judge, start: Tensors, steps: int) -> Tensors:
    return adapt(learner.model, learner.hooks, start, judge.support, learner.rule(), steps)[0]


def known_tasks(learner: Learner, drawer: TaskDrawer, cell: Cell, count: int) -> KnownTasks:
    """Training tasks of the cell's family and ways, with five examples."""
    keys, found = [], []
    for begin in tqdm(range(0, count, AT_ONCE), desc=cell.name, file=sys.stderr):
        cells = replace(cell, shots=5)
        tasks = [drawer.draw(cells, i) for i in range(begin, min(count, begin + AT_ONCE))]
        judge = Judge(learner, tasks)
        start = repeat({n: t.detach() for n, t in learner.tensors().items()}, len(tasks))
        found.append(adapted(learner, judge, start, learner.part.steps))
        keys.append(keys_of(learner, tasks))
    stacked = {name: torch.cat([one[name] for one in found]) for name in found[0]}
    return KnownTasks(torch.cat(keys), stacked)


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.warm_start", description=__doc__)
    parser.add_argument("--model", type=Path, default=MODELS / "innerloop-tiny", metavar="PATH")
    parser.add_argument("--data", type=Path, default=Path("data"), help="prepared data folder")
    parser.add_argument("--known", type=int, default=64, help="known tasks a family")
    parser.add_argument("--tasks", type=int, default=40, help="validation tasks a cell")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        artifact = load_artifact(arguments.model)
        corpus = corpus_of(artifact, arguments.data)
    except (ArtifactError, EvaluationError, DataError) as error:
        print(f"benchmarks.warm_start: {error}", file=sys.stderr)
        return 2
    learner = Learner.from_artifact(artifact)
    learner.gate = None
    families = make_families(
        artifact.tokenizer, corpus.train_intents, corpus.train_replies, corpus.train_personas
    )
    others = unrelated_questions(corpus.train_intents, corpus.train_personas)
    training = TaskDrawer(families, others, 2000)
    drawer = validation_drawer(corpus, artifact.tokenizer, 1000)
    starts = ["session_init", *(f"nearest {count}" for count in NEAREST)]
    heads = ["tasks", "start", *(f"{step} steps, % right" for step in STEPS)]
    heads.append(f"minus session_init, {STEPS[-1]} steps")
    print("| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", sep="\n", flush=True)
    known: dict[tuple[str, int], KnownTasks] = {}
    for cell in CELLS:
        form = (cell.family, cell.ways)
        if form not in known:
            known[form] = known_tasks(learner, training, cell, arguments.known)
        right = measure(learner, drawer, cell, known[form], arguments.tasks)
        for start in starts:
            cells = [_percent(right[start, step]) for step in STEPS]
            pairs = zip(right[start, STEPS[-1]], right[starts[0], STEPS[-1]], strict=True)
            apart = "–" if start == starts[0] else _percent([a - b for a, b in pairs])
            print(f"| {cell.name} | {start} | {' | '.join(cells)} | {apart} |", flush=True)
    return 0


def measure(
    learner: Learner, drawer: TaskDrawer, cell: Cell, known: KnownTasks, count: int
) -> dict[tuple[str, int], list[float]]:
    """Share of queries right, a task each, by start and inner steps."""
    found: dict[tuple[str, int], list[float]] = {}
    name = "choice" if cell.family == "label" else "exact"
    init = {n: t.detach() for n, t in learner.tensors().items()}
    for begin in range(0, count, AT_ONCE):
        tasks = [drawer.draw(cell, i) for i in range(begin, min(count, begin + AT_ONCE))]
        judge, keys = Judge(learner, tasks), keys_of(learner, tasks)
        starts = {"session_init": repeat(init, len(tasks))}
        for nearest in NEAREST:
            starts[f"nearest {nearest}"] = warm_start(known, init, keys, nearest)
        for start, tensors in starts.items():
            for step in STEPS:
                scores = judge.score(adapted(learner, judge, tensors, step))
                found.setdefault((start, step), []).extend(score[name] for score in scores)
    return found


def _percent(values: Sequence[float]) -> str:
    mean, half = interval([100 * value for value in values])
    return f"{mean:.1f} ± {half:.1f}"


if __name__ == "__main__":
    sys.exit(main())
