"""Finite differences against the inner gradient and the meta-gradient, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from tiny_models import (
    CPU,
    in_float64,
    llama_spec,
    make_anchors,
    make_llama,
    make_rule,
    make_support,
    prefill_examples,
    random_adapter,
    random_examples,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaForCausalLM

from adapters.config import InnerRule, LoraSpec, Scope
from adapters.inner_loop import adapt, support_losses
from adapters.layer import LoraHooks, Rows
from adapters.objective import demonstration_loss
from adapters.prefix import continue_from
from adapters.state import Tensors, repeat
from adapters.support import Anchors, Support, make_turns

STEP = 1e-5  # of the central differences
TOLERANCE = 1e-5  # relative
CLIP = 4.0  # shortens some of the gradients of this problem and not others
SUPPORT = random_examples(5, seed=1)
SESSIONS = [0, 0, 1, 1, 1]
QUERY = random_examples(4, seed=2)
ANCHORS = random_examples(2, seed=3)
QUERY_SESSIONS = torch.tensor([0, 1, 0, 1])


@pytest.fixture(autouse=True)
def differentiable_attention() -> Iterator[None]:
    """Fused attention has no second derivative, and eager attention computes in float32."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@dataclass
class Problem:
    """Two sessions that learn, queries that judge them, and all that they depend on."""

    model: LlamaForCausalLM
    hooks: LoraHooks
    spec: LoraSpec
    reference: Tensor  # what the untaught model says to the anchors: a constant of the outer loop
    adapter: Tensors
    rule: InnerRule
    anchor_weight: Tensor
    prompts_need_gradients: bool = True

    def support(self) -> Support:
        """Everything prefilled anew, so that the prompts follow the base."""
        with torch.set_grad_enabled(self.prompts_need_gradients):
            prefix = prefill_examples(self.model, ANCHORS, self.spec.scope)
            anchors = Anchors(make_turns(ANCHORS, prefix, self.spec.scope, CPU), self.reference)
            return make_support(self.model, self.spec, SUPPORT, SESSIONS, anchors)

    def adapted(self, second_order: bool = True) -> Tensors:
        rule = InnerRule(3, self.rule.step_sizes, self.rule.clip, self.anchor_weight)
        start = repeat(self.adapter, 2)
        moved, _ = adapt(
            self.model,
            self.hooks,
            start,
            self.support(),
            rule,
            differentiable=True,
            second_order=second_order,
        )
        return moved

    def query_loss(self, adapted: Tensors) -> Tensor:
        with torch.set_grad_enabled(self.prompts_need_gradients):
            prefix = prefill_examples(self.model, QUERY, self.spec.scope)
        turns = make_turns(QUERY, prefix, self.spec.scope, CPU)
        with self.hooks.use(Rows(adapted, QUERY_SESSIONS)):
            logits = continue_from(self.model, turns.prefix, turns.ids)
        return demonstration_loss(logits, turns.targets).mean()

    def meta_loss(self) -> Tensor:
        return self.query_loss(self.adapted())

    def leaves(self, group: str) -> list[Tensor]:
        if group == "base":
            return list(self.model.parameters())
        if group == "step sizes":
            return list(self.rule.step_sizes.values())
        if group == "anchor weight":
            return [self.anchor_weight]
        return [tensor for name, tensor in self.adapter.items() if name.endswith(group)]


def make_problem(scope: Scope, clip: float) -> Problem:
    spec = llama_spec(scope)
    model = in_float64(make_llama())
    hooks = LoraHooks(model, spec)
    reference = make_anchors(model, hooks, spec, ANCHORS).reference
    adapter = random_adapter(model, spec)
    rule = make_rule(adapter, size=0.3, clip=clip)
    problem = Problem(
        model, hooks, spec, reference, adapter, rule, torch.tensor(0.7, dtype=torch.float64)
    )
    for group in ("lora_A", "lora_B", "step sizes", "anchor weight"):
        for leaf in problem.leaves(group):
            leaf.requires_grad_()
    return problem


def along(leaves: Sequence[Tensor], seed: int) -> list[Tensor]:
    """A random direction of length one."""
    generator = torch.Generator().manual_seed(seed)
    raw = [torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype) for leaf in leaves]
    length = torch.stack([tensor.square().sum() for tensor in raw]).sum().sqrt()
    return [tensor / length for tensor in raw]


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.norm() for tensor in tensors]).norm()


def slope(loss: Callable[[], Tensor], leaves: Sequence[Tensor], along: list[Tensor]) -> float:
    """Central difference of ``loss`` when ``leaves`` move along a direction."""
    values = []
    for factor in (STEP, -STEP):
        with torch.no_grad():
            torch._foreach_add_(list(leaves), along, alpha=factor)
        values.append(float(loss().detach()))
        with torch.no_grad():
            torch._foreach_sub_(list(leaves), along, alpha=factor)
    return (values[0] - values[1]) / (2 * STEP)


def check(loss: Callable[[], Tensor], leaves: Sequence[Tensor], seeds: int = 2) -> None:
    gradients = torch.autograd.grad(loss(), leaves)
    for seed in range(seeds):
        direction = along(leaves, seed)
        analytic = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
        numeric = slope(loss, leaves, direction)
        assert numeric == pytest.approx(analytic, rel=TOLERANCE), seed
        assert abs(analytic) > 1e-6, "the direction does not matter: nothing was checked"


@pytest.mark.parametrize("scope", ["activated", "full"])
def test_inner_gradient(scope: Scope) -> None:
    problem = make_problem(scope, clip=1e9)
    support = problem.support()
    stacked = {n: t.detach().clone() for n, t in repeat(problem.adapter, 2).items()}
    leaves = [tensor.requires_grad_() for tensor in stacked.values()]

    def loss() -> Tensor:
        return support_losses(problem.model, problem.hooks, stacked, support, 0.7).sum()

    check(loss, leaves)


@pytest.mark.parametrize("scope", ["activated", "full"])
@pytest.mark.parametrize("group", ["base", "lora_A", "lora_B", "step sizes", "anchor weight"])
def test_meta_gradient_through_three_clipped_steps(scope: Scope, group: str) -> None:
    problem = make_problem(scope, clip=CLIP)
    check(problem.meta_loss, problem.leaves(group))


def test_the_clip_shortens_some_gradients_of_this_problem_and_not_others() -> None:
    problem = make_problem("activated", clip=CLIP)
    start = repeat(problem.adapter, 2)
    _, reports = adapt(problem.model, problem.hooks, start, problem.support(), problem.rule)
    norms = torch.stack([report.gradient_norms for report in reports])  # (K, S)
    assert bool((norms > CLIP).any())
    assert bool((norms < CLIP).any())


def test_gradient_flows_through_the_prompts_to_the_base() -> None:
    problem = make_problem("activated", clip=CLIP)
    base, adapter = problem.leaves("base"), problem.leaves("lora_B")
    exact = torch.autograd.grad(problem.meta_loss(), [*base, *adapter])
    problem.prompts_need_gradients = False
    without = torch.autograd.grad(problem.meta_loss(), [*base, *adapter])
    difference = torch.stack([(a - b).norm() for a, b in zip(exact, without, strict=True)])
    assert float(difference[: len(base)].norm()) > 0.05 * float(_norm(exact[: len(base)]))
    assert float(difference[len(base) :].norm()) < 1e-9


def test_first_order_counts_the_inner_gradients_as_constants() -> None:
    problem = make_problem("activated", clip=CLIP)
    leaves = [*problem.leaves("lora_A"), *problem.leaves("lora_B")]
    adapted = problem.adapted(second_order=False)
    first_order = torch.autograd.grad(problem.query_loss(adapted), leaves)
    fixed = {name: tensor.detach().requires_grad_() for name, tensor in adapted.items()}
    at_the_end = torch.autograd.grad(problem.query_loss(fixed), list(fixed.values()))
    expected = dict(zip(fixed, (gradient.sum(0) for gradient in at_the_end), strict=True))
    names = [n for n in fixed if n.endswith("lora_A")] + [n for n in fixed if n.endswith("lora_B")]
    for name, gradient in zip(names, first_order, strict=True):
        torch.testing.assert_close(gradient, expected[name])
    exact = torch.autograd.grad(problem.meta_loss(), leaves)
    assert not all(torch.allclose(a, b, rtol=1e-2) for a, b in zip(exact, first_order, strict=True))
