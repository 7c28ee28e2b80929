"""`python -m benchmarks.in_context`: feedback in the prompt, in the adapter, and in both.

Held-out tasks on a real engine, taught by demonstrations: what is answered by the adapter as it is
served (gate and recall), by its steps alone, by the base with the k most relevant items as earlier
turns of the prompt, and by both. Prints Markdown; no times.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from adapters.artifact import Artifact
from adapters.chat import ChatEncoder, user_turn
from adapters.state import AdapterState
from benchmarks.asking import ANSWER_TOKENS, Asker, share
from benchmarks.machine import allowed_cores
from benchmarks.trial import Record, Trial, TrialError, arguments, open_trial, percent, table
from meta_training.evaluation.cells import Cell, Task
from server.engine import Engine, EngineLimits
from server.flows.encoding import Encoding
from server.flows.in_context import InContext, Shown
from server.sessions import Derivation, Item, Pointer

CELLS = {
    "one reply": Cell("house_reply", 1, 5),
    "three replies": Cell("house_reply", 3, 5),
    "labels": Cell("label", 5, 5),
}
COUNTS = (1, 3, 5)


class Shower:
    """One engine whose prompts get a task's items, as the server would put them there."""

    def __init__(self, artifact: Artifact, engine: Engine) -> None:
        """Use a started engine."""
        self._encoder = ChatEncoder(artifact.tokenizer)
        self._shows = InContext(artifact, engine, Encoding(self._encoder))
        self._asker = Asker(engine, self._encoder)

    async def records(self, name: str, task: Task) -> list[Record]:
        """Figures of every way to answer."""
        items = [self._asker.example(turn.question, turn.answer) for turn in task.episode.support]
        candidate = await self._asker.adapt(items)
        learned = candidate.state if candidate.verdict.accepted else None
        untouched = await self._asker.answers(task.unrelated)
        ways: dict[str, tuple[int, AdapterState | None, bool]] = {
            "neither": (0, None, False),
            "adapter, as served": (0, learned, True),
            "adapter, steps alone": (0, learned, False),
        }
        for count in COUNTS:
            ways[f"prompt alone, k = {count}"] = (count, None, False)
            ways[f"adapter as served and prompt, k = {count}"] = (count, learned, True)
        found = await asyncio.gather(
            *(self._figures(name, task, *how, untouched) for how in ways.values())
        )
        return [{"task": name, "way": way, **own} for way, own in zip(ways, found, strict=True)]

    async def _figures(
        self,
        name: str,
        task: Task,
        count: int,
        state: AdapterState | None,
        recall: bool,
        untouched: Sequence[str],
    ) -> dict[str, float]:
        query = task.episode.query
        asked = [await self._shown(name, task, turn.question, count) for turn in query]
        others = [await self._shown(name, task, text, count) for text in task.unrelated]
        said, elsewhere = await asyncio.gather(
            self._asker.says(asked, state, recall, task.episode.choices),
            self._asker.says(others, state, recall),
        )
        return {
            "right": share(said, [turn.answer for turn in query]),
            "changed": 1 - share(elsewhere, untouched),
            "shown": sum(len(one.items) for one in asked) / len(asked),
            "shown elsewhere": sum(len(one.items) for one in others) / len(others),
        }

    async def _shown(self, name: str, task: Task, question: str, count: int) -> Shown:
        turns = user_turn(question)
        bare = self._encoder.prompt(turns)
        if not count:
            return Shown(bare)
        payloads: list[Mapping[str, Any]] = [
            {"messages": user_turn(turn.question), "completion": turn.answer}
            for turn in task.episode.support
        ]
        items = tuple(
            Item(number, "demonstration", "applied", payload, "", 0.0)
            for number, payload in enumerate(payloads, 1)
        )
        session = Derivation(Pointer("bench", name, incarnation=name), items)
        return await self._shows.show(session, turns, bare, count, ANSWER_TOKENS)


def report(records: Sequence[Record]) -> str:
    """Means over tasks of each way to answer, by family."""
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record["task"].rpartition("-")[0], record["way"]].append(record)
    rows = []
    for (family, way), own in groups.items():
        shares = [percent([one[name] for one in own]) for name in ("right", "changed")]
        means = [sum(one[name] for one in own) / len(own) for name in ("shown", "shown elsewhere")]
        rows.append([family, way, *shares, *(f"{mean:.1f}" for mean in means), len(own)])
    heads = ["family", "answered by", "right %", "unrelated answers changed %", "items shown"]
    return table([*heads, "to unrelated questions", "tasks"], rows)


async def measure(trial: Trial, parsed: argparse.Namespace) -> list[Record]:
    """Records of all tasks."""
    limits = EngineLimits(threads=parsed.threads, patience_s=3600.0, queue=4096)
    engine = Engine(trial.artifact, limits)
    shower = Shower(trial.artifact, engine)
    engine.start()
    found = []
    try:
        for index in range(parsed.tasks):
            for family, cell in CELLS.items():
                name = f"{family}-{index}"
                task = trial.drawer.draw(cell, index)
                found += await trial.record(name, partial(shower.records, name, task))
    finally:
        await engine.stop(0.0)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print; returns the exit code."""
    parser = arguments("in_context", __doc__, tasks=40)
    parser.add_argument("--threads", type=int, default=allowed_cores())
    parsed = parser.parse_args(argv)
    try:
        trial = open_trial(parsed)
    except TrialError as error:
        print(f"benchmarks.in_context: {error}", file=sys.stderr)
        return 2
    print(report(asyncio.run(measure(trial, parsed))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
