"""`python -m benchmarks.sequences`: sessions that get up to 128 feedback items, one after another.

Held-out tasks: one answer after another is taught, each by several wordings. After 8, 32 and 128
items each way of following them (`benchmarks.policies`) is asked other wordings of what was taught
first, in the middle and last, and unrelated questions. The gate's memory has all items, whichever
way the weights go. Prints Markdown.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch

from adapters.guard import DEFAULT_LIMITS, norm, update_norm
from adapters.state import Tensors, take
from benchmarks.policies import Steps, policies
from benchmarks.trial import Record, Trial, TrialError, arguments, open_trial, percent, table
from meta_training.evaluation.cells import Cell, Task
from meta_training.evaluation.intervals import interval
from meta_training.evaluation.judge import Judge
from meta_training.learner import Learner
from meta_training.tasks.batches import encode_turn
from meta_training.tasks.episodes import Turn

STREAMS = {"replies": Cell("house_reply", 8, 16), "labels": Cell("label", 16, 8)}
"""128 items each: eight answers by 16 wordings, or sixteen labels by eight."""
AGES = ("first", "middle", "latest", "newest")


class Stream:
    """A task whose answers are taught one after another."""

    def __init__(self, task: Task, learner: Learner, index: int) -> None:
        """Put ``task``'s turns in their order: by a shuffle of its kinds of question."""
        self._task, self._learner = task, learner
        episode = task.episode
        kinds = sorted(episode.taught)
        random.Random(index).shuffle(kinds)
        self._kinds = kinds
        self._turns = sorted(episode.support, key=lambda turn: kinds.index(turn.kind))
        self.items = [encode_turn(turn, learner.encoder) for turn in self._turns]

    def asked(self, count: int) -> tuple[Task, list[str]]:
        """What there is to ask after ``count`` items, and the kind of each question."""
        support = self._turns[:count]
        taught = {turn.kind for turn in support}
        query = [turn for turn in self._task.episode.query if turn.kind in taught]
        choices = self._task.episode.choices and _answers(support)
        episode = replace(
            self._task.episode, support=tuple(support), query=tuple(query), choices=choices
        )
        return replace(self._task, episode=episode), [turn.kind for turn in query]

    def ages(self, count: int) -> dict[str, set[str]]:
        """Which kinds were taught first, and so on: a quarter of them each, or one."""
        taught = [kind for kind in self._kinds if kind in {t.kind for t in self._turns[:count]}]
        quarter = max(1, len(taught) // 4)
        middle = set(taught[quarter : len(taught) - quarter])
        return {
            "first": set(taught[:quarter]),
            "middle": middle,
            "latest": set(taught[len(taught) - quarter :]),
            "newest": {taught[-1]},
        }


def _answers(support: Sequence[Turn]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(turn.answer for turn in support))


class Follower:
    """Runs every policy along a stream and judges it at the checkpoints."""

    def __init__(self, learner: Learner, trial: Trial, checkpoints: Sequence[int]) -> None:
        """Judge with ``learner``, whose model nobody else runs."""
        self._learner, self._trial = learner, trial
        self._checkpoints = checkpoints
        self._steps = Steps(learner, trial.artifact)

    def records(self, name: str) -> list[Record]:
        """One of each policy and checkpoint; ``name`` is a stream's and a number."""
        form, _, number = name.partition("-")
        task = self._trial.drawer.draw(STREAMS[form], int(number))
        stream = Stream(task, self._learner, int(number))
        every, found = policies(self._steps), []
        for count in range(1, max(self._checkpoints) + 1):
            wanted = count in self._checkpoints
            judge = _Judged(self._learner, stream, count) if wanted else None
            for policy in every:
                adapter = policy.arrive(stream.items[:count], wanted)
                if judge is None or adapter is None:
                    continue
                about = {"task": name, "policy": policy.name, "items": count}
                cost = {"cpu_s": policy.spent_s, **self._length(adapter)}
                found.append(about | cost | judge.figures(adapter))
        return found

    def _length(self, adapter: Tensors) -> dict[str, float]:
        """The update's norm, and whether the guard would refuse it for that."""
        start = self._trial.artifact.session_init
        length = update_norm(take(adapter, 0), start)
        return {"norm": length, "over": float(length > DEFAULT_LIMITS.update_ratio * norm(start))}


class _Judged:
    """What adapters are asked after ``count`` items of a stream, laid out once."""

    def __init__(self, learner: Learner, stream: Stream, count: int) -> None:
        task, self._kinds = stream.asked(count)
        self._ages = stream.ages(count)
        self._served = Judge(learner, [task], recall=True)
        self._labels = bool(task.episode.choices)
        self._alone = self._served if self._labels else Judge(learner, [task])

    def figures(self, adapter: Tensors) -> Record:
        """Shares of right answers by age, as served and by the adapter alone; changed answers."""
        if self._labels:
            rows = self._served.choices(adapter)
            served, alone = rows["choice"], rows["choice_model"]
        else:
            served, alone = self._served.exact(adapter), self._alone.exact(adapter)
        return {
            "served": self._by_age(served.tolist()),
            "alone": self._by_age(alone.tolist()),
            "changed": float(self._alone.changed(adapter).float().mean()),
        }

    def _by_age(self, right: Sequence[bool]) -> dict[str, float]:
        shares = {"all": sum(right) / len(right)}
        for age, kinds in self._ages.items():
            own = [one for one, kind in zip(right, self._kinds, strict=True) if kind in kinds]
            if own:
                shares[age] = sum(own) / len(own)
        return shares


def quality(records: Sequence[Record], how: str) -> str:
    """Right answers by age, answered ``how``, and all of them less the first policy's, paired."""
    rows = []
    for (items, policy), own in _groups(records).items():
        shares = [[one[how][age] for one in own if age in one[how]] for age in ("all", *AGES)]
        paired = percent(_beside(records, own, how))
        rows.append([items, policy, *map(percent, shares), paired, len(own)])
    heads = ["items", "policy", "right, all of it %", "what was first %", "the middle %"]
    heads += ["the latest %", "the newest answer %", "all, less the first policy's", "tasks"]
    return table(heads, rows)


def cost(records: Sequence[Record]) -> str:
    """What learning the last item took, how far the adapter went, and what it changed elsewhere."""
    rows = []
    for (items, policy), own in _groups(records).items():
        seconds = sorted(one["cpu_s"] for one in own)[len(own) // 2]
        length, half = interval([one["norm"] for one in own])
        shares = [percent([one[name] for one in own]) for name in ("over", "changed")]
        rows.append([items, policy, f"{seconds:.2f}", f"{length:.1f} ± {half:.1f}", *shares])
    heads = ["items", "policy", "CPU s at the last item", "norm of the update"]
    return table([*heads, "over the guard's bound %", "unrelated answers changed %"], rows)


def _groups(records: Sequence[Record]) -> dict[tuple[int, str], list[Record]]:
    groups: dict[tuple[int, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record["items"], record["policy"]].append(record)
    return dict(sorted(groups.items(), key=lambda pair: pair[0][0]))  # policies in their order


def _beside(records: Sequence[Record], own: Sequence[Record], how: str) -> list[float]:
    first = {
        (one["task"], one["items"]): one[how]["all"]
        for one in records
        if one["policy"] == records[0]["policy"]
    }
    return [one[how]["all"] - first[one["task"], one["items"]] for one in own]


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print; returns the exit code."""
    parser = arguments("sequences", __doc__, tasks=12)
    parser.add_argument("--items", type=int, nargs="+", default=[8, 32, 128], metavar="N")
    parser.add_argument("--streams", nargs="+", choices=STREAMS, default=list(STREAMS))
    parser.add_argument("--threads", type=int, default=1)
    parsed = parser.parse_args(argv)
    torch.set_num_threads(parsed.threads)
    try:
        trial = open_trial(parsed)
    except TrialError as error:
        print(f"benchmarks.sequences: {error}", file=sys.stderr)
        return 2
    follower = Follower(Learner.from_artifact(trial.artifact), trial, parsed.items)
    names = [f"{form}-{index}" for index in range(parsed.tasks) for form in parsed.streams]
    records = trial.records(names, follower.records)
    for form in parsed.streams:
        own = [record for record in records if record["task"].startswith(form)]
        print(f"### {form}\n\nAs served.\n\n{quality(own, 'served')}\n")
        print(f"By the adapter alone.\n\n{quality(own, 'alone')}\n\n{cost(own)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
