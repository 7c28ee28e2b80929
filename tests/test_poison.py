"""`benchmarks.poison`: what is poisoned, what is measured of it, and how it is put into tables."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from adapters.artifact import Artifact, load_artifact
from adapters.chat import ChatEncoder
from benchmarks import poison
from benchmarks.poison import Poisoner
from benchmarks.signals import Signals
from meta_training.evaluation.cells import Cell, Task
from meta_training.tasks.episodes import Episode, Turn
from server.settings import MODELS

QUESTIONS = [f"{verb} {thing}" for verb in ("where is", "I want") for thing in "abcdefghij"]


@dataclass(frozen=True)
class Drawer:
    """Small tasks, in place of the held-out material, which no test has."""

    def draw(self, cell: Cell, index: int) -> Task:
        turns = [
            Turn(f"{question} {index}", f"Reply {way} of {index}.", f"{index}/{way}")
            for way in range(cell.ways)
            for question in QUESTIONS[way :: cell.ways][: cell.shots + 1]
        ]
        kinds = frozenset(turn.kind for turn in turns)
        support = tuple(turn for n, turn in enumerate(turns) if n % (cell.shots + 1))
        query = (turns[0],)
        unrelated = tuple(f"{word} {index}?" for word in ("who", "when", "why", "how", "which"))
        return Task(Episode(cell.family, support, query, (), kinds), unrelated)


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return load_artifact(MODELS / "innerloop-tiny")


def test_what_is_poisoned_are_the_last_items_and_only_they(artifact: Artifact) -> None:
    encoder = ChatEncoder(artifact.tokenizer)
    poisoner = Poisoner(Drawer(), encoder, range(300, 400))
    lessons = list(poisoner.honest(0)) + list(poisoner.poisoned(0))
    assert len(lessons) == 5 + 3 + 1 + 3 * 5
    honest = [*lessons[4].items]
    assert len(honest) == 5
    other = encoder.completion("Reply 0 of 5000.")
    for kind, number in (("another intent's reply", 9), ("random tokens", 14)):
        for count, lesson in enumerate(lessons[number : number + 5], 1):
            assert (lesson.kind, lesson.share) == (kind, 20 * count)
            assert [*lesson.earlier] == honest[: 5 - count]
            assert [one.prompt for one in lesson.items] == [one.prompt for one in honest]
            for wrong, right in zip(lesson.new, honest[5 - count :], strict=True):
                assert wrong.completion != right.completion
                assert (wrong.completion == other) is (number == 9)
    assert not {one.prompt for one in lessons[-1].new} & {one.prompt for one in honest}
    assert len({one.completion for one in lessons[-1].new}) == 1
    assert lessons == list(poisoner.honest(0)) + list(poisoner.poisoned(0)), "every time the same"


def test_a_refused_request_is_served_as_before() -> None:
    figures = [{"right": right, "right by steps": right, "changed": 0.0} for right in (0.25, 1.0)]
    record = {"kind": "random tokens", "share": 40, "refused": 1.0}
    record |= {"all": figures[0], "before": figures[1], "served": figures[1]}
    row = poison.curve([record, record]).splitlines()[-1]
    assert row.startswith("| random tokens | 40 | 25.0 ± 0.0 | 100.0 ± 0.0 | 100.0 ± 0.0 | 25.0")
    assert row.endswith("| 100.0 ± 0.0 | 2 |")


def test_a_signal_is_judged_by_the_bound_that_honest_requests_allow() -> None:
    seen = dict.fromkeys(poison.SIGNALS, 0.0) | {"refused": 0.0, "share": 20}
    honest = [seen | {"kind": "honest: x", "kl": float(n)} for n in range(100)]
    wrong = [seen | {"kind": "wrong", "kl": kl} for kl in (10.0, 94.0, 95.0, 96.0, 200.0)]
    (row,) = [line for line in poison.signals(honest + wrong).splitlines() if "KL" in line]
    assert row.endswith("| 50.00 (4%) | 95.00 (40%) |")


def test_signals_are_zero_where_nothing_was_taught(artifact: Artifact) -> None:
    signals = Signals(artifact)
    encoder = ChatEncoder(artifact.tokenizer)
    examples = [encoder.example([{"role": "user", "content": q}], "Hi.") for q in QUESTIONS[:3]]
    still = {
        name: tensor * (0.0 if name.endswith("lora_B") else 1.0)
        for name, tensor in artifact.session_init.items()
    }
    assert signals.divergence(examples, still) == pytest.approx(0.0, abs=1e-5)
    assert signals.loss(examples, still) == pytest.approx(signals.loss(examples, None), abs=1e-5)
    assert signals.divergence(examples, artifact.session_init) > 0.001
