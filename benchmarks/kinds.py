"""`python -m benchmarks.kinds`: what each kind of feedback does to held-out tasks.

On a real engine, with its gate: a shop's reply to one intent is demonstrated, or preferred to the
base's own answer, or the base's answers are rated. Then whatever a question gets is disliked, time
and again. Prints a Markdown table and a line; no times.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from adapters.artifact import Artifact, ArtifactError, load_artifact
from adapters.chat import ChatEncoder
from adapters.support import Example
from benchmarks.asking import Asker, share
from benchmarks.machine import allowed_cores
from meta_training.evaluation.cells import Cell, Task
from meta_training.evaluation.intervals import interval
from meta_training.evaluation.material import EvaluationError, corpus_of
from meta_training.pipeline import held_out_drawer
from meta_training.tasks.sources import DataError
from server.engine import Engine, EngineLimits
from server.settings import MODELS

CELL = Cell("house_reply", 1, 5)
SEED = 1000  # of the tasks, the one that `innerloop evaluate` draws
DISLIKES = 4  # of whatever comes, one after the other
COLUMNS = {
    "reply": "the reply, to other wordings %",
    "kept": "the base's answer kept, same question %",
    "changed": "unrelated answers changed %",
    "refused": "refused by the guard %",
}
Figures = Mapping[str, float]


@dataclass(frozen=True)
class Asked:
    """A task's questions and what the base answers to those that feedback is about."""

    reply: str
    taught: Sequence[str]
    base: Sequence[str]
    others: Sequence[str]  # wordings that nothing is said about
    unrelated: Sequence[str]
    untouched: Sequence[str]  # what the base answers to unrelated ones


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kinds", description=__doc__)
    parser.add_argument("--model", type=Path, default=MODELS / "innerloop-tiny", metavar="PATH")
    parser.add_argument("--data", type=Path, default=Path("data"), help="prepared data folder")
    parser.add_argument("--tasks", type=int, default=40, help="of each row (default: %(default)s)")
    parser.add_argument("--items", type=int, nargs="+", default=[1, 3, 5], metavar="N")
    parser.add_argument("--threads", type=int, default=allowed_cores())
    arguments = parser.parse_args(argv)
    try:
        artifact = load_artifact(arguments.model)
        corpus = corpus_of(artifact, arguments.data)
        drawer = held_out_drawer(corpus, artifact.tokenizer, SEED)
        tasks = [drawer.draw(CELL, index) for index in range(arguments.tasks)]
    except (ArtifactError, EvaluationError, DataError, OSError) as error:
        print(f"benchmarks.kinds: {error}", file=sys.stderr)
        return 2
    found, again = asyncio.run(measure(artifact, tasks, arguments.items, arguments.threads))
    print(table(found))
    print(
        f"\n{DISLIKES} dislikes of whatever comes, one after the other, on {len(again)} questions: "
        f"{sum(again)} of the {DISLIKES * len(again)} answers had been disliked before."
    )
    return 0


async def measure(
    artifact: Artifact, tasks: Sequence[Task], counts: Sequence[int], threads: int
) -> tuple[dict[tuple[int, str], list[Figures]], list[int]]:
    """Figures of every task by number of items and kind; and of four questions a task, how many
    answers came that had been disliked before."""
    engine = Engine(artifact, EngineLimits(threads=threads))
    shop = Shop(engine, ChatEncoder(artifact.tokenizer))
    found: dict[tuple[int, str], list[Figures]] = defaultdict(list)
    engine.start()
    try:
        for task in tqdm(tasks, desc="tasks", file=sys.stderr):
            for count in counts:
                asked = await shop.asked(task, count)
                for kind, items in shop.lessons(asked, count).items():
                    found[count, kind].append(await shop.figures(asked, items))
        support = [turn.question for task in tasks for turn in task.episode.support[:2]]
        unrelated = [question for task in tasks for question in task.unrelated[:2]]
        questions = tqdm(dict.fromkeys([*support, *unrelated]), desc="dislikes", file=sys.stderr)
        again = [await shop.disliked_again(question) for question in questions]
    finally:
        await engine.stop(0.0)
    return found, again


class Shop:
    """One engine, asked and taught."""

    def __init__(self, engine: Engine, encoder: ChatEncoder) -> None:
        """Use a started engine."""
        self._asker = Asker(engine, encoder)

    async def asked(self, task: Task, count: int) -> Asked:
        """Have the base answer the ``count`` questions that feedback will be about."""
        support, query = task.episode.support, task.episode.query
        taught = [turn.question for turn in support[:count]]
        return Asked(
            support[0].answer,
            taught,
            await self._asker.answers(taught),
            [turn.question for turn in query],
            task.unrelated,
            await self._asker.answers(task.unrelated),
        )

    def lessons(self, asked: Asked, count: int) -> dict[str, list[Example]]:
        """Feedback on the same questions, by kind."""
        told = [self._asker.example(question, asked.reply) for question in asked.taught]
        pairs = list(zip(asked.taught, asked.base, strict=True))
        against = [self._asker.example(q, asked.reply, rating=-1) for q in asked.unrelated[:count]]
        return {
            "demonstrations": told,
            "preferences": [
                replace(one, rejected=self._asker.encoder.completion(said))
                for one, said in zip(told, asked.base, strict=True)
            ],
            "thumbs up": [
                self._asker.example(question, said, rating=1) for question, said in pairs
            ],
            "thumbs down": [
                self._asker.example(question, said, rating=-1) for question, said in pairs
            ],
            "demonstrations, thumbs down on the reply elsewhere": told + against,
        }

    async def figures(self, asked: Asked, items: Sequence[Example]) -> Figures:
        """Teach ``items`` and ask everything again."""
        candidate = await self._asker.adapt(items)
        accepted = candidate.verdict.accepted
        learned = candidate.state if accepted else None
        others = await self._asker.answers(asked.others, learned)
        again = await self._asker.answers(asked.taught, learned)
        unrelated = await self._asker.answers(asked.unrelated, learned)
        return {
            "reply": share(others, [asked.reply] * len(others)),
            "kept": share(again, asked.base),
            "changed": 1 - share(unrelated, asked.untouched),
            "refused": float(not accepted),
        }

    async def disliked_again(self, question: str) -> int:
        """Dislike whatever the question gets, and count what came although it was disliked."""
        said, again = await self._asker.answers([question]), 0
        for _ in range(DISLIKES):
            items = [self._asker.example(question, answer, rating=-1) for answer in said]
            (answer,) = await self._asker.answers(
                [question], (await self._asker.adapt(items)).state
            )
            again += answer in said
            said = [*said, answer]
        return again


def table(found: Mapping[tuple[int, str], Sequence[Figures]]) -> str:
    """Means with 95% intervals over tasks."""
    heads = ["items", "kind", *COLUMNS.values(), "tasks"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for (count, kind), rows in found.items():
        cells = [str(count), kind]
        for name in COLUMNS:
            mean, half = interval([100 * row[name] for row in rows])
            cells.append(f"{mean:.1f} ± {half:.1f}")
        lines.append("| " + " | ".join([*cells, str(len(rows))]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
