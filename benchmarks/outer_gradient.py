"""`python -m benchmarks.outer_gradient`: what an exact outer gradient costs as K grows.

The graph of all inner steps against the adjoint loop, on an artifact's own learner and one batch of
house replies, beside first-order MAML: the most bytes that autograd keeps at a time, and CPU time,
in one process and in turn. Prints Markdown.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adapters.artifact import ArtifactError, load_artifact
from meta_training.algorithms.maml import Maml
from meta_training.language import lay_out
from meta_training.learner import Learner
from meta_training.tasks.batches import Batch, Unrelated, encode_batch, encode_turn
from meta_training.tasks.episodes import Shape, Turn
from meta_training.tasks.families import Families
from meta_training.tasks.sources import DataError, load_intents
from server.settings import MODELS

WAYS = {"first order": Maml(1.0), "unrolled": Maml(), "adjoint": Maml(flat=True)}
REPLIES = ("We keep it for you.", "Bring it back.", "On Monday.", "Ask at the door.")


@dataclass
class Held:
    """Bytes that autograd keeps for backward passes, a storage counted once."""

    now: int = 0
    most: int = 0

    def keep(self, tensor: Tensor) -> Kept:
        return Kept(self, tensor)


class Kept:
    """A kept tensor that counts itself while it is kept."""

    storages: dict[int, int] = {}  # noqa: RUF012

    def __init__(self, held: Held, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._held, self.tensor, self._key = held, tensor, storage.data_ptr()
        self._bytes = storage.nbytes()
        count = self.storages.get(self._key, 0)
        self.storages[self._key] = count + 1
        if not count:
            held.now += self._bytes
            held.most = max(held.most, held.now)

    def __del__(self) -> None:
        self.storages[self._key] -= 1
        if not self.storages[self._key]:
            del self.storages[self._key]
            self._held.now -= self._bytes


def batch_of(learner: Learner, intents: Path, tasks: int) -> Batch:
    """Episodes of one reply from four examples, with two queries and an unrelated question."""
    families = Families(load_intents(intents), REPLIES, [], [], [5] * len(REPLIES))
    rng = random.Random(0)
    episodes = [families.house_reply(Shape(1, 4, 2), (1, 9), rng) for _ in range(tasks)]
    other = Unrelated("other", encode_turn(Turn("Who are you?", "A lamp.", "o"), learner.encoder))
    return encode_batch(episodes, [[other]] * tasks, learner.encoder)


def measure(learner: Learner, batch: Batch, name: str, steps: int) -> tuple[int, float]:
    """Bytes kept at most, and CPU seconds (without counting)."""
    held = Held()
    for counted in (True, False):
        learner.zero_grad()
        before = time.process_time()
        if counted:
            with torch.autograd.graph.saved_tensors_hooks(held.keep, lambda kept: kept.tensor):
                WAYS[name].backward(lay_out(learner, batch), steps, 0.0)
        else:
            WAYS[name].backward(lay_out(learner, batch), steps, 0.0)
        spent = time.process_time() - before
    return held.most, spent


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.outer_gradient", description=__doc__
    )
    parser.add_argument("--model", type=Path, default=MODELS / "innerloop-tiny", metavar="PATH")
    parser.add_argument(
        "--intents", type=Path, default=Path("tests/data/shop.jsonl"), help="questions by intent"
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 3, 5, 10], help="K")
    parser.add_argument("--tasks", type=int, default=2, help="episodes a batch")
    parser.add_argument("--rounds", type=int, default=3, help="times each is run, in turn")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        learner = Learner.from_artifact(load_artifact(arguments.model))
        batch = batch_of(learner, arguments.intents, arguments.tasks)
    except (ArtifactError, DataError) as error:
        print(f"benchmarks.outer_gradient: {error}", file=sys.stderr)
        return 2
    learner.model.requires_grad_(True)
    learner.model.set_attn_implementation("eager")
    heads = ["K", *(f"{name}, MiB kept (CPU s)" for name in WAYS), "adjoint / unrolled"]
    print("| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", sep="\n", flush=True)
    for steps in arguments.steps:
        runs: dict[str, list[tuple[int, float]]] = {name: [] for name in WAYS}
        for _ in range(arguments.rounds):
            for name, found in runs.items():
                found.append(measure(learner, batch, name, steps))
        kept = {name: max(most for most, _ in found) / 2**20 for name, found in runs.items()}
        spent = {name: statistics.median(s for _, s in found) for name, found in runs.items()}
        cells = [f"{kept[name]:.0f} ({spent[name]:.2f})" for name in WAYS]
        memory = kept["adjoint"] / kept["unrolled"]
        apart = (
            f"{memory:.2f} of the memory, {spent['adjoint'] / spent['unrolled']:.2f} of the time"
        )
        print(f"| {steps} | {' | '.join(cells)} | {apart} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
