"""`python -m benchmarks.precision`: what storing a session's adapter in fewer bits costs answers.

Held-out tasks, answered by the adapter alone, as it was derived and as it comes back from int8 and
bfloat16 differences to session_init, and from int8 in the 16 bits that decode steps on a CPU read.
Prints Markdown.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor

from adapters.inner_loop import adapt
from adapters.layer import FACTORS
from adapters.snapshot import Precision, dumps, loads
from adapters.state import AdapterState, Tensors, repeat, take
from benchmarks.trial import Record, Trial, TrialError, arguments, open_trial, percent, table
from meta_training.evaluation.cells import Cell
from meta_training.evaluation.judge import Judge
from meta_training.learner import Learner
from server.engine.kernels import load_kernels
from server.engine.slots import compact

CELLS = {
    "one reply": Cell("house_reply", 1, 5),
    "three replies": Cell("house_reply", 3, 5),
    "labels": Cell("label", 5, 5),
}
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8")
DECODED = "int8, decoded in 16 bits"
FORMS = (*PRECISIONS, DECODED)
FIGURES = {"exact": "exactly right", "choice_model": "label picked", "changed": "unrelated changed"}


def decoded(tensors: Mapping[str, Tensor]) -> Tensors:
    """An adapter as decode steps see it; all factors are A's."""
    kept = compact(tensors)
    found = {}
    for name in tensors:
        numbers = kept[name].float()
        module, _, matrix = name.rpartition(".")
        is_a = matrix == "lora_A"
        found[name] = numbers * kept[module + FACTORS].unsqueeze(-1) if is_a else numbers.mT
    return found


def records(learner: Learner, trial: Trial, name: str) -> list[Record]:
    """Figures of one task at each precision; ``name`` is a family's and a number."""
    artifact = trial.artifact
    family, _, number = name.rpartition("-")
    judge = Judge(learner, [trial.drawer.draw(CELLS[family], int(number))])
    start = repeat(artifact.session_init, 1)
    adapted, _ = adapt(learner.model, learner.hooks, start, judge.support, artifact.rule)
    state = AdapterState(artifact.spec, take(adapted, 0), artifact.fingerprint)
    found = []
    for precision in PRECISIONS:
        stored = dumps(state, precision, artifact.start)
        read = loads(
            stored,
            spec=artifact.spec,
            base_fingerprint=artifact.fingerprint,
            shapes=artifact.shapes,
            start=artifact.start,
        )
        forms = {precision: read.tensors}
        if precision == "int8" and load_kernels():
            forms[DECODED] = decoded(read.tensors)
        for form, tensors in forms.items():
            scores = judge.score(repeat(tensors, 1))[0]
            figures = {figure: scores[figure] for figure in FIGURES if figure in scores}
            about = {"task": name, "family": family, "precision": form, "bytes": len(stored)}
            found.append(about | figures)
    return found


def report(found: Sequence[Record]) -> str:
    """Figures at each precision, and the points lost to float32, paired over tasks."""
    exactly = {one["task"]: one for one in found if one["precision"] == "float32"}

    def place(record: Record) -> tuple[str, int]:
        return record["family"], FORMS.index(record["precision"])

    rows = []
    for (family, number), group in groupby(sorted(found, key=place), place):
        own = list(group)
        size = sum(one["bytes"] for one in own) / len(own) / 1e6
        cells = []
        for figure in FIGURES:
            pairs = [(one[figure], exactly[one["task"]][figure]) for one in own if figure in one]
            cells.append(percent([value for value, _ in pairs]))
            cells.append(percent([value - whole for value, whole in pairs]) if number else "")
        rows.append([family, FORMS[number], f"{size:.2f}", *cells, len(own)])
    named = [cell for words in FIGURES.values() for cell in (f"{words} %", "less float32's")]
    return table(["family", "stored as", "MB", *named, "tasks"], rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print; returns the exit code."""
    parser = arguments("precision", __doc__, tasks=60)
    parser.add_argument("--threads", type=int, default=1)
    parsed = parser.parse_args(argv)
    torch.set_num_threads(parsed.threads)
    try:
        trial = open_trial(parsed)
    except TrialError as error:
        print(f"benchmarks.precision: {error}", file=sys.stderr)
        return 2
    learner = Learner.from_artifact(trial.artifact)
    names = [f"{family}-{index}" for index in range(parsed.tasks) for family in CELLS]
    print(report(trial.records(names, lambda name: records(learner, trial, name))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
