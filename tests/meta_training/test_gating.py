"""The gate's threshold keeps taught questions in, and others out, each kind of others alike."""

import pytest
import torch

from meta_training.gating import best_threshold


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
