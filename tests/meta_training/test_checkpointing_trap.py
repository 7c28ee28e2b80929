"""Gradient checkpointing around fast weights is wrong, and silently; the adjoint loop is not.

A checkpointed layer is computed again in the backward pass, with whatever weights it has by then:
not those of the inner step that it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

import pytest
import torch
from float64 import make_learner
from test_outer_gradient import differentiable_attention, words
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import CheckpointError, checkpoint
from transformers import PreTrainedTokenizerFast

from adapters.config import InnerRule
from adapters.layer import Rows
from adapters.state import Tensors, repeat
from meta_training.algorithms.adjoint import adjoint_backward
from meta_training.algorithms.episodes import Cut, Embedded, Judged
from meta_training.algorithms.unrolled import unrolled
from meta_training.learner import Learner

__all__ = ["differentiable_attention", "words"]  # fixtures

# transformers 5.24 renamed what older ones know by this name alone.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")

Logits = Callable[[Mapping[str, Tensor], Tensor], Tensor]  # fast weights, (B, T) -> (B, T, V)
IDS = torch.arange(24).view(4, 6)


@dataclass(frozen=True)
class Texts:
    """One episode: a text to learn, another to judge by."""

    start: Tensors
    rule: InnerRule
    logits: Logits

    def support_losses(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return self._cost(tensors, IDS[:2]).unsqueeze(0)

    def query_losses(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return self._cost(tensors, IDS[2:]).unsqueeze(0)

    def judge(self, tensors: Mapping[str, Tensor] | None, support_too: bool = False) -> Judged:
        assert tensors is not None
        loss = self.query_losses(tensors).mean()
        return Judged(loss, {"query": loss.item()})

    def embedded(self) -> list[Embedded]:
        raise NotImplementedError

    def cut(self, cut: Cut) -> Self:
        return replace(self, rule=cut.rule(self.rule))

    def _cost(self, tensors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        logits = self.logits(tensors, ids)  # (B, T, V)
        return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


class Ways:
    """Ways to give a model other weights for one forward pass."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    def hooks(self, tensors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """As ours, which are off again after the forward pass."""
        with self.learner.hooks.use(Rows(tensors, None)):
            return self._model(ids)

    def hooks_left_on(self, tensors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """What is attached stays until something else is."""
        self.learner.hooks.rows = Rows(tensors, None)
        return self._model(ids)

    def functional(self, tensors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """The base's own weights plus the adapters' product."""
        model, scale = self.learner.model, self.learner.spec.scale
        names = {name.rpartition(".")[0] for name in tensors}
        weights = {
            f"{name}.weight": model.get_parameter(f"{name}.weight")
            + scale * tensors[f"{name}.lora_B"][0] @ tensors[f"{name}.lora_A"][0]
            for name in names
        }
        return functional_call(model, weights, (ids,), {"use_cache": False}).logits

    def as_arguments(self, tensors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """Checkpointed as a whole, with the fast weights among what is kept."""

        def run(*values: Tensor) -> Tensor:
            return self.hooks(dict(zip(tensors, values, strict=True)), ids)

        return checkpoint(run, *tensors.values(), use_reentrant=False)

    def _model(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.learner.model(ids, use_cache=False).logits
        return logits


@pytest.fixture
def ways(words: PreTrainedTokenizerFast) -> Iterator[Ways]:
    learner = make_learner(words)
    yield Ways(learner)
    learner.hooks.rows = None


def checkpointed(ways: Ways) -> None:
    """As Hugging Face does it, which is for models in training mode; there is no dropout."""
    kwargs = {"use_reentrant": False}
    ways.learner.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    ways.learner.model.train()


def gradient(ways: Ways, logits: Logits, steps: int, flat: bool = False) -> Tensor:
    """(N,) the gradient of session_init, step sizes and base."""
    learner = ways.learner
    learner.zero_grad()
    rule = learner.rule()
    episodes = Texts(repeat(learner.tensors(), 1), rule, logits)
    weights = [0.0] * (steps - 1) + [1.0]
    if flat:
        adjoint_backward(episodes, weights)
    else:
        unrolled(episodes, weights).loss.backward()
    parts = [p.grad for p in learner.parameters() if p.grad is not None]
    return torch.cat([part.flatten() for part in parts])


def error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("way", ["functional", "hooks_left_on"])
def test_a_checkpointed_model_gives_another_gradient_and_does_not_say_so(
    ways: Ways, way: str, steps: int
) -> None:
    exact = gradient(ways, ways.hooks, steps)
    assert error(gradient(ways, getattr(ways, way), steps), exact) < 1e-10, "without, it is right"
    checkpointed(ways)
    assert error(gradient(ways, getattr(ways, way), steps), exact) > 0.05


def test_hooks_that_are_off_again_are_found_out(ways: Ways) -> None:
    checkpointed(ways)
    with pytest.raises(CheckpointError, match="number of tensors was saved"):
        gradient(ways, ways.hooks, 2)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_adjoint_loop_and_weights_as_arguments_are_right(ways: Ways, steps: int) -> None:
    exact = gradient(ways, ways.hooks, steps)
    assert error(gradient(ways, ways.hooks, steps, flat=True), exact) < 1e-10
    assert error(gradient(ways, ways.as_arguments, steps), exact) < 1e-10
