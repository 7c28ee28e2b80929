"""The outer gradient through inner steps: finite differences, first order, no steps at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from float64 import FixedReference, make_learner
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedTokenizerFast

from adapters.chat import user_turn
from adapters.config import Anchor
from adapters.layer import rows_of
from adapters.objective import demonstration_loss
from adapters.prefix import continue_from
from adapters.state import repeat
from adapters.support import make_turns
from meta_training.algorithms.controls import MultiTask
from meta_training.algorithms.unrolled import unrolled
from meta_training.contrast import contrastive_loss
from meta_training.language import lay_out
from meta_training.tasks.batches import Batch, Unrelated, encode_batch
from meta_training.tasks.episodes import Episode, Turn
from meta_training.tokenizer import train_tokenizer

STEP = 1e-7  # of the central differences
TOLERANCE = 1e-5  # relative
ANCHORS = (Anchor("Where is it?", "On the roof."), Anchor("Who are you?", "A lamp."))


@pytest.fixture(autouse=True)
def differentiable_attention() -> Iterator[None]:
    """Fused attention has no second derivative, and eager attention computes in float32."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    texts = [a.prompt + " " + a.completion for a in ANCHORS] + ["Do you open? We open at nine."]
    return train_tokenizer(texts * 9, 300, 64)


def batch_of(learner: FixedReference) -> Batch:
    """Two episodes of unequal size, an unrelated question each."""
    opening = Turn("Do you open?", "We open at nine.", "open")
    other = Turn("Do you open at nine?", "We open at nine.", "open")
    roof = Turn("Where is it?", "A lamp.", "where")
    more = Turn("Where are you?", "A lamp.", "where")
    episodes = [
        Episode("house_reply", (opening, roof, more), (other,), (), frozenset({"open", "where"})),
        Episode("house_reply", (roof,), (more,), (), frozenset({"where"})),
    ]
    encoder = learner.encoder
    unrelated = [
        [Unrelated("who", encoder.example(user_turn("Who are you?"), answer))]
        for answer in ("A roof.", "We")
    ]
    return encode_batch(episodes, unrelated, encoder)


def check_gradient(
    learner: FixedReference, parameters: Sequence[Tensor], locality: float = 0.7, steps: int = 3
) -> None:
    """The exact gradient along a random direction equals the central difference."""
    batch = batch_of(learner)

    def value() -> Tensor:
        episodes = lay_out(learner, batch, locality)
        judged = unrolled(episodes, [0.0] * (steps - 1) + [1.0])
        return judged.loss + 0.5 * contrastive_loss(episodes.embeddings, batch.kinds)

    gradients = torch.autograd.grad(value(), parameters, materialize_grads=True)
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    expected = sum((g * d).sum().item() for g, d in zip(gradients, directions, strict=True))
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += sign * STEP * direction
        ends.append(value().item())
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter -= sign * STEP * direction
    measured = (ends[0] - ends[1]) / (2 * STEP)
    assert abs(expected) > 1e-3, "a vanishing gradient would prove nothing"
    assert measured == pytest.approx(expected, rel=TOLERANCE, abs=1e-8)


@pytest.mark.parametrize("anchors", [(), ANCHORS], ids=["bare", "anchors"])
def test_gradient_of_session_init(
    words: PreTrainedTokenizerFast, anchors: tuple[Anchor, ...]
) -> None:
    learner = make_learner(words, anchors)
    check_gradient(learner, list(learner.adapter))


@pytest.mark.parametrize("anchors", [(), ANCHORS], ids=["bare", "anchors"])
def test_gradient_of_step_sizes(
    words: PreTrainedTokenizerFast, anchors: tuple[Anchor, ...]
) -> None:
    learner = make_learner(words, anchors)
    check_gradient(learner, [learner.log_sizes])


def test_gradient_of_element_wise_sizes(words: PreTrainedTokenizerFast) -> None:
    learner = make_learner(words, sizes="element")
    check_gradient(learner, list(learner.log_factors))


def test_gradient_where_only_the_top_layer_moves(words: PreTrainedTokenizerFast) -> None:
    learner = make_learner(words, top_layers=1)
    still = learner.rule().still
    assert len(still) == len(learner.names) // 2
    assert all(".layers.0." in name for name in still)
    check_gradient(learner, [*learner.adapter, learner.log_sizes])


def test_gradient_of_the_anchors_weight(words: PreTrainedTokenizerFast) -> None:
    learner = make_learner(words, ANCHORS)
    check_gradient(learner, [learner.log_anchor_weight])


@pytest.mark.parametrize("anchors", [(), ANCHORS], ids=["bare", "anchors"])
def test_gradient_of_the_base(words: PreTrainedTokenizerFast, anchors: tuple[Anchor, ...]) -> None:
    """Locality is left out: what it compares with is a constant that moves with the base."""
    learner = make_learner(words, anchors)
    check_gradient(learner, list(learner.model.parameters()), locality=0)


def test_the_clip_is_part_of_the_gradient(words: PreTrainedTokenizerFast) -> None:
    learner = make_learner(words)
    learner.part = learner.part.model_copy(update={"clip": 0.05})
    check_gradient(learner, list(learner.adapter))


def gradient(learner: FixedReference, steps: int, second_order: bool) -> tuple[float, Tensor]:
    """Loss and flat gradient of session_init."""
    weights = [0.0] * (steps - 1) + [1.0] if steps else []
    judged = unrolled(lay_out(learner, batch_of(learner), 0), weights, second_order)
    gradients = torch.autograd.grad(judged.loss, list(learner.adapter))
    return judged.loss.item(), torch.cat([g.flatten() for g in gradients])


def test_first_order_sees_the_same_loss_and_another_gradient(
    words: PreTrainedTokenizerFast,
) -> None:
    learner = make_learner(words)
    exact_loss, exact = gradient(learner, 3, True)
    first_loss, first = gradient(learner, 3, False)
    assert first_loss == pytest.approx(exact_loss, rel=1e-12)
    assert float((exact - first).norm() / exact.norm()) > 0.01


def test_without_inner_steps_both_are_the_plain_gradient(words: PreTrainedTokenizerFast) -> None:
    learner = make_learner(words)
    assert torch.equal(gradient(learner, 0, True)[1], gradient(learner, 0, False)[1])


def test_multitask_judges_session_init_and_leaves_the_rule_alone(
    words: PreTrainedTokenizerFast,
) -> None:
    learner = make_learner(words, ANCHORS)
    batch = batch_of(learner)
    judged = MultiTask().backward(lay_out(learner, batch, 0.7), 3, 0.5)
    assert learner.log_sizes.grad is None
    assert learner.log_anchor_weight.grad is None
    assert all(tensor.grad is not None for tensor in learner.adapter)
    means = []
    for part, sessions in (
        (batch.query, batch.query_sessions),
        (batch.support, batch.support_sessions),
    ):
        prefix = learner.prefill([example.prompt for example in part])
        turns = make_turns(part, prefix, learner.spec.scope, torch.device("cpu"))
        rows = rows_of(repeat(learner.tensors(), 2), torch.tensor(sessions))
        with learner.hooks.use(rows):
            logits = continue_from(learner.model, turns.prefix, turns.ids)
        means.append(demonstration_loss(logits, turns.targets).mean())
    assert judged.figures["query"] == pytest.approx(torch.stack(means).mean().item(), rel=1e-12)


def test_an_untaught_learner_changes_nothing(words: PreTrainedTokenizerFast) -> None:
    """With B at zero and no steps, unrelated answers are the base's own."""
    learner = make_learner(words)
    with torch.no_grad():
        for name, tensor in learner.tensors().items():
            if name.endswith("lora_B"):
                tensor.zero_()
    judged = unrolled(lay_out(learner, batch_of(learner)), [])
    assert judged.figures["locality"] == pytest.approx(0.0, abs=1e-12)
