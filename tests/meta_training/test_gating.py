"""The gate's threshold keeps taught questions in, and others out, each kind of others alike."""

import pytest
import torch

from meta_training.evaluation.cells import Cell, TaskDrawer
from meta_training.gating import MEMORY_TASKS, best_threshold, memory_tasks
from meta_training.tasks.episodes import unrelated_questions
from meta_training.tasks.families import Families
from meta_training.tasks.sources import DataError, Intent


def drawer(count: int) -> TaskDrawer:
    """Tasks about so many validation intents of ten questions each."""
    intents = [
        Intent("own", "own", f"class {i}", tuple(f"text {i} {j}" for j in range(10)))
        for i in range(count)
    ]
    words = [f"w{i}" for i in range(60)]
    return TaskDrawer(Families(intents, [], [], words, []), unrelated_questions(intents, []), 0)


@pytest.mark.parametrize(("count", "ways"), [(30, 10), (11, 10), (10, 9), (6, 5), (3, 2)])
def test_memory_is_tried_on_as_many_validation_classes_as_there_are(count: int, ways: int) -> None:
    """One is left for the questions that a task leaves alone."""
    tasks = memory_tasks(drawer(count), Cell("label", 10, 5))
    assert len(tasks) == MEMORY_TASKS
    assert {len(task.episode.choices) for task in tasks} == {ways}


def test_two_validation_classes_say_nothing_of_memory() -> None:
    with pytest.raises(DataError):
        memory_tasks(drawer(2), Cell("label", 10, 5))


def test_a_threshold_between_what_can_be_told_apart() -> None:
    near, far = torch.tensor([0.7, 0.8, 0.9]), torch.tensor([0.1, 0.2, 0.6])
    threshold = best_threshold(near, [far])
    assert 0.6 < threshold <= 0.7


def test_every_kind_of_unrelated_question_counts_the_same() -> None:
    """However few of one kind there are, half of the weight is theirs."""
    near = torch.tensor([0.5] * 6 + [0.9] * 4)
    akin, far = torch.tensor([0.8, 0.7]), torch.full((1000,), 0.1)
    assert best_threshold(near, [far]) == pytest.approx(0.101, abs=0.002)
    assert best_threshold(near, [far, akin]) == pytest.approx(0.101, abs=0.002)
    assert best_threshold(near, [akin]) > 0.8


def test_a_question_at_the_threshold_opens_the_gate() -> None:
    assert best_threshold(torch.tensor([0.5]), [torch.tensor([0.499])]) == pytest.approx(0.5)
