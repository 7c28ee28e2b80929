"""`python -m benchmarks.recall_share`: how much of a token's probability is the memory's.

The share of recall in a taught session's answers, tried on validation tasks, or on held-out ones to
confirm what was chosen (`--held-out`). Prints Markdown.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby

import torch

from adapters.inner_loop import adapt
from adapters.state import Tensors, repeat
from benchmarks.trial import Record, Trial, TrialError, arguments, open_trial, percent, table
from meta_training.evaluation.cells import Cell
from meta_training.evaluation.judge import Judge
from meta_training.learner import Learner

CELLS = {
    "one reply": Cell("house_reply", 1, 5),
    "three replies": Cell("house_reply", 3, 5),
}
SHARES = (0.25, 0.4, 0.5, 0.6, 0.75, 0.9)
NOW = 0.5  # what the others are set against


def records(learner: Learner, trial: Trial, name: str, shares: Sequence[float]) -> list[Record]:
    """Figures of one task at each share; ``name`` is a family's and a number."""
    family, _, number = name.rpartition("-")
    task = trial.drawer.draw(CELLS[family], int(number))
    adapted: Tensors | None = None
    found = []
    for share in shares:
        judge = Judge(learner, [task], recall=True, share=share)
        if adapted is None:
            start, rule = repeat(trial.artifact.session_init, 1), trial.artifact.rule
            adapted, _ = adapt(learner.model, learner.hooks, start, judge.support, rule)
        scores = judge.score(adapted)[0]
        figures = {figure: scores[figure] for figure in ("exact", "changed", "kl")}
        found.append({"task": name, "family": family, "share": share, **figures})
    return found


def report(found: Sequence[Record]) -> str:
    """Means over tasks at each share, and the change against today's, paired."""

    def place(record: Record) -> tuple[str, float]:
        return record["family"], record["share"]

    now = {one["task"]: one["exact"] for one in found if one["share"] == NOW}
    rows = []
    for (family, share), group in groupby(sorted(found, key=place), place):
        own = list(group)
        less = percent([one["exact"] - now[one["task"]] for one in own if one["task"] in now])
        shares = [percent([one[name] for one in own]) for name in ("exact", "changed")]
        kl = sum(one["kl"] for one in own) / len(own)
        rows.append([family, share, shares[0], less, shares[1], f"{kl:.3f}", len(own)])
    heads = ["family", "share", "right %", f"less that at {NOW}", "unrelated answers changed %"]
    return table([*heads, "KL there, nats/token", "tasks"], rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print; returns the exit code."""
    parser = arguments("recall_share", __doc__, tasks=60)
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES), metavar="S")
    parser.add_argument("--held-out", action="store_true", help="tasks of the evaluation")
    parser.add_argument("--families", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--threads", type=int, default=1)
    parsed = parser.parse_args(argv)
    torch.set_num_threads(parsed.threads)
    try:
        trial = open_trial(parsed, validation=not parsed.held_out)
    except TrialError as error:
        print(f"benchmarks.recall_share: {error}", file=sys.stderr)
        return 2
    if trial.artifact.rule.gate is None or trial.artifact.rule.gate.mix is None:
        print(f"benchmarks.recall_share: {trial.artifact.name} remembers nothing", file=sys.stderr)
        return 2
    learner = Learner.from_artifact(trial.artifact)
    names = [f"{family}-{index}" for index in range(parsed.tasks) for family in parsed.families]
    print(report(trial.records(names, lambda name: records(learner, trial, name, parsed.shares))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
