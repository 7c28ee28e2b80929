"""The adjoint loop gives what the unrolled graph gives, to everything that is learned."""

from __future__ import annotations

import pytest
import torch
from float64 import FixedReference, make_learner
from test_outer_gradient import ANCHORS, batch_of, differentiable_attention, words
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from meta_training.algorithms.adjoint import adjoint_backward
from meta_training.algorithms.episodes import Algorithm
from meta_training.algorithms.maml import Maml
from meta_training.algorithms.maml_plus_plus import MamlPlusPlus
from meta_training.algorithms.unrolled import unrolled
from meta_training.contrast import contrastive_loss
from meta_training.language import lay_out

__all__ = ["differentiable_attention", "words"]  # fixtures


def gradients(
    learner: FixedReference, algorithm: Algorithm, steps: int, aside: bool = True
) -> tuple[float, dict[str, Tensor | None]]:
    """The loss, and every parameter's gradient by its name."""
    learner.zero_grad()
    batch = batch_of(learner)
    episodes = lay_out(learner, batch, 0.7)
    beside = 0.5 * contrastive_loss(episodes.embeddings, batch.kinds) if aside else None
    judged = algorithm.backward(episodes, steps, 0.25, beside)
    found = {name: None if p.grad is None else p.grad for name, p in learner.named_parameters()}
    learner.zero_grad()
    return judged.loss.item(), found


def check_same(
    learner: FixedReference, algorithms: tuple[Algorithm, Algorithm], steps: int, tolerance: float
) -> None:
    (loss, expected), (flat_loss, found) = (
        gradients(learner, algorithm, steps) for algorithm in algorithms
    )
    assert flat_loss == pytest.approx(loss, rel=tolerance)
    for name, wanted in expected.items():
        assert (wanted is None) == (found[name] is None), name
        if wanted is not None:
            assert float(wanted.norm()) > 0, name
            error = float((found[name] - wanted).norm() / wanted.norm())
            assert error < tolerance, name


@pytest.mark.parametrize(
    ("anchors", "form"),
    [
        ((), {}),
        (ANCHORS, {}),
        ((), {"sizes": "element"}),
        ((), {"top_layers": 1}),
        ((), {"scope": "full"}),
        ((), {"clip": 0.05}),
    ],
    ids=["bare", "anchors", "element", "top", "full", "clipped"],
)
@pytest.mark.parametrize("steps", [1, 4])
def test_it_equals_the_unrolled_graph_in_float64(
    words: PreTrainedTokenizerFast, anchors: tuple[()], form: dict[str, object], steps: int
) -> None:
    """Four steps are two more than have sizes of their own."""
    learner = make_learner(words, anchors, **form)
    check_same(learner, (Maml(), Maml(flat=True)), steps, 1e-10)


@pytest.mark.parametrize("flat", [False, True], ids=["unrolled", "adjoint"])
def test_float32_is_as_near_as_its_rounding(words: PreTrainedTokenizerFast, flat: bool) -> None:
    """How near depends on the processor's instructions, for both alike: 1e-5 to 3e-4 were seen."""
    _, exact = gradients(make_learner(words, ANCHORS), Maml(), 5)
    _, found = gradients(make_learner(words, ANCHORS).float(), Maml(flat=flat), 5)
    for name, wanted in exact.items():
        if wanted is not None:
            got = found[name]
            assert got is not None, name
            assert float((got - wanted).norm() / wanted.norm()) < 2e-3, name


def test_it_judges_after_every_step_too(words: PreTrainedTokenizerFast) -> None:
    learner = make_learner(words)
    check_same(learner, (MamlPlusPlus(), MamlPlusPlus(flat=True)), 3, 1e-10)


def test_a_frozen_base_and_nothing_beside(words: PreTrainedTokenizerFast) -> None:
    learner = make_learner(words)
    learner.model.requires_grad_(False)
    (_, expected), (_, found) = (
        gradients(learner, Maml(flat=flat), 2, aside=False) for flat in (False, True)
    )
    for name, wanted in expected.items():
        if wanted is None:
            assert found[name] is None
        else:
            torch.testing.assert_close(found[name], wanted)
    assert found["log_sizes"] is not None


def test_without_steps_it_is_the_plain_gradient(words: PreTrainedTokenizerFast) -> None:
    learner = make_learner(words)
    expected = torch.autograd.grad(
        unrolled(lay_out(learner, batch_of(learner)), []).loss, list(learner.adapter)
    )
    adjoint_backward(lay_out(learner, batch_of(learner)), [])
    for parameter, wanted in zip(learner.adapter, expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, wanted)


def test_it_keeps_one_steps_graph_and_not_all(words: PreTrainedTokenizerFast) -> None:
    """Bytes saved for backward passes at one time: as many for 6 steps as for 2, here twice."""

    def most(flat: bool, steps: int) -> int:
        held, peak = 0, 0

        class Kept:
            """Counts itself while autograd holds it."""

            def __init__(self, tensor: Tensor) -> None:
                nonlocal held, peak
                self.tensor = tensor
                held += tensor.nbytes
                peak = max(peak, held)

            def __del__(self) -> None:
                nonlocal held
                held -= self.tensor.nbytes

        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            gradients(learner, Maml(flat=flat), steps)
        return peak

    learner = make_learner(words)
    assert most(True, 6) < 1.1 * most(True, 2)
    assert most(False, 6) > 2 * most(False, 2)
