"""A warm start is the mix that its formula says: nearer tasks weigh more, far ones not at all."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from meta_training.warm_start import KnownTasks, task_key, warm_start

KNOWN = KnownTasks(torch.eye(3), {"a": torch.tensor([[10.0, 0.0], [0.0, 10.0], [99.0, 99.0]])})
START = {"a": torch.tensor([1.0, 2.0])}
ASKED = torch.tensor([[0.6, 0.8, 0.0], [0.8, 0.6, 0.0]])  # what they are is their cosines too


@pytest.mark.parametrize("sharpness", [1.0, 10.0])
def test_the_nearest_are_mixed_by_the_softmax_of_their_cosines(sharpness: float) -> None:
    more = 1 / (1 + math.exp(-0.2 * sharpness))  # of the nearer one; the third has no say
    expected = torch.tensor([[(1 - more) * 10, more * 10], [more * 10, (1 - more) * 10]])
    found = warm_start(KNOWN, START, ASKED, 2, sharpness)
    torch.testing.assert_close(found["a"], expected)


def test_the_nearest_alone_is_where_it_led() -> None:
    found = warm_start(KNOWN, START, ASKED, 1)
    torch.testing.assert_close(found["a"], torch.tensor([[0.0, 10.0], [10.0, 0.0]]))


def test_tasks_that_are_as_near_as_each_other_are_mixed_alike() -> None:
    found = warm_start(KNOWN, START, torch.ones(1, 3), 3)
    torch.testing.assert_close(found["a"], KNOWN.adapted["a"].mean(0, keepdim=True))


def test_a_task_is_known_by_the_direction_of_its_examples() -> None:
    found = task_key(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
    torch.testing.assert_close(found, normalize(torch.ones(2), dim=0))
