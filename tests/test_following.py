"""`benchmarks.sequences` and its like: what a stream asks, how it is followed, what is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from adapters.artifact import Artifact, load_artifact
from adapters.chat import ChatEncoder
from adapters.state import Tensors, take
from adapters.support import Example
from benchmarks import in_context, precision, recall_share, sequences
from benchmarks.policies import Again, Blocks, Minibatches, Onward, Policy, Steps
from benchmarks.sequences import Follower, Stream
from benchmarks.trial import Record, Trial
from meta_training.evaluation.cells import Cell, Task
from meta_training.learner import Learner
from meta_training.tasks.episodes import Episode, Turn
from server.engine.kernels import load_kernels
from server.settings import MODELS


class Drawer:
    """Small tasks, in place of the held-out material, which no test has."""

    def draw(self, cell: Cell, index: int) -> Task:
        labels = cell.family == "label"
        answers = (
            ["yes", "no", "red", "blue"] if labels else ["Of course.", "No way.", "Ask.", "B."]
        )
        ways, shots = min(cell.ways, 4), min(cell.shots, 2)
        support, query = [], []
        for way in range(ways):
            words = [f"{verb} the {'abcdefgh'[way]} {index}" for verb in ("find", "get", "see")]
            turns = [Turn(text, answers[way], f"kind {way}") for text in words]
            support += turns[:shots]
            query += turns[shots:]
        kinds = frozenset(turn.kind for turn in support)
        choices = tuple(answers[:ways]) if labels else ()
        episode = Episode(cell.family, tuple(support), tuple(query), choices, kinds)
        return Task(episode, ("who are you?", "what time is it?"))


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return load_artifact(MODELS / "innerloop-tiny")


@pytest.fixture(scope="module")
def learner(artifact: Artifact) -> Learner:
    return Learner.from_artifact(artifact)


@pytest.fixture(scope="module")
def items(artifact: Artifact) -> list[Example]:
    encoder = ChatEncoder(artifact.tokenizer)
    turns = [({"role": "user", "content": f"question {n}"}, f"Answer {n % 2}") for n in range(3)]
    return [encoder.example([question], answer) for question, answer in turns]


@pytest.fixture
def trial(artifact: Artifact, tmp_path: Path) -> Trial:
    return Trial(artifact, Drawer(), tmp_path / "kept")  # type: ignore[arg-type]


def follow(policy: Policy, items: Sequence[Example]) -> Tensors:
    found = None
    for count in range(1, len(items) + 1):
        found = policy.arrive(items[:count], count == len(items))
    assert found is not None
    return take(found, 0)


def same(one: Tensors, other: Tensors) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_stream_asks_about_what_was_taught_so_far(trial: Trial, learner: Learner) -> None:
    stream = Stream(trial.drawer.draw(sequences.STREAMS["labels"], 0), learner, 3)
    for count, kinds in ((1, 1), (2, 1), (3, 2), (8, 4)):
        task, asked = stream.asked(count)
        assert len(task.episode.support) == count
        assert len(set(asked)) == len(task.episode.choices) == kinds
        assert {turn.answer for turn in task.episode.query} <= set(task.episode.choices)
    first, middle, latest, newest = (stream.ages(8)[age] for age in sequences.AGES)
    assert (len(first), len(middle), len(latest)) == (1, 2, 1)
    assert newest == latest
    assert first | middle | latest == {f"kind {way}" for way in range(4)}
    assert stream.ages(1)["first"] == stream.ages(1)["newest"]


def test_policies_agree_where_they_are_the_same_thing(
    artifact: Artifact, learner: Learner, items: list[Example]
) -> None:
    steps = Steps(learner, artifact)
    every = follow(Again(steps), items)
    assert same(every, follow(Blocks(steps, 8), items)), "one block is all of them"
    assert same(every, follow(Again(steps, window=3), items))
    assert not same(every, follow(Blocks(steps, 2), items))
    assert not same(every, follow(Again(steps, window=2), items))
    assert not same(every, follow(Minibatches(steps, 2), items))
    assert same(follow(Minibatches(steps, 2), items), follow(Minibatches(steps, 2), items))
    assert same(
        follow(Again(steps), items[:1]), follow(Onward(steps, artifact.rule.steps), items[:1])
    )
    kept = Onward(steps, 1, 2)
    assert not same(follow(kept, items), follow(Onward(steps, 1), items))
    assert len(kept._reservoir) == 2
    assert kept.spent_s > 0


@pytest.mark.parametrize(("form", "checkpoints"), [("replies", [2]), ("labels", [1, 3])])
def test_every_policy_is_judged_at_every_checkpoint(
    trial: Trial, learner: Learner, form: str, checkpoints: list[int]
) -> None:
    records = trial.records([f"{form}-0"], Follower(learner, trial, checkpoints).records)
    policies = {record["policy"] for record in records}
    assert len(records) == len(checkpoints) * len(policies) == 7 * len(checkpoints)
    for record in records:
        assert 0 <= record["served"]["all"] <= 1
        assert record["norm"] > 0
    own = [record for record in records if record["policy"] == "all again"]
    assert own[0]["served"]["all"] == 1, "one answer is easy"
    text = sequences.quality(records, "served")
    assert text.count("\n") == 1 + len(records)
    assert "| 0.0 ± nan |" in text, "the first policy less itself"
    assert sequences.cost(records).count("\n") == 1 + len(records)


def test_kept_records_are_not_made_again(trial: Trial) -> None:
    made: list[str] = []

    def make(name: str) -> list[Record]:
        made.append(name)
        return [{"task": name}]

    assert trial.records(["a", "b"], make) == trial.records(["a", "b"], make)
    assert made == ["a", "b"]

    async def other() -> list[Record]:
        return [{"task": "c"}]

    assert asyncio.run(trial.record("c", other)) == [{"task": "c"}]
    assert asyncio.run(trial.record("a", other)) == [{"task": "a"}]


def test_recalls_share_and_precision_have_a_row_each(trial: Trial, learner: Learner) -> None:
    shares = recall_share.records(learner, trial, "one reply-0", [0.25, 0.5])
    assert [one["share"] for one in shares] == [0.25, 0.5]
    assert recall_share.report(shares).count("| one reply |") == 2
    stored = precision.records(learner, trial, "labels-0")
    decoded = ["int8, decoded in 16 bits"] if load_kernels() else []
    assert [one["precision"] for one in stored] == ["float32", "bfloat16", "int8", *decoded]
    assert stored[0]["bytes"] > stored[1]["bytes"] > stored[2]["bytes"]
    assert precision.report(stored).count("| labels |") == len(stored)


def test_what_the_prompt_does_is_measured_as_it_is_served(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_context, "CELLS", {"one reply": Cell("house_reply", 1, 2)})
    monkeypatch.setattr(in_context, "COUNTS", (1, 5))
    parsed = in_context.arguments("in_context", None, 1).parse_args(["--tasks", "1"])
    parsed.threads = 1
    records = asyncio.run(in_context.measure(trial, parsed))
    ways = {record["way"] for record in records}
    assert len(records) == len(ways) == 7
    shown = {one["way"]: one["shown"] for one in records}
    assert shown["neither"] == 0
    assert shown["prompt alone, k = 1"] <= 1
    assert 0 < shown["prompt alone, k = 5"] <= 2, "there are two items, as near as the gate wants"
    assert in_context.report(records).count("\n") == 1 + len(records)
