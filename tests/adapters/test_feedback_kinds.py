"""Preferences and ratings: their losses, their weights, and their rows beside demonstrations."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import (
    CPU,
    in_float64,
    llama_spec,
    make_llama,
    make_rule,
    prefill_examples,
    random_adapter,
    random_examples,
)
from torch import Tensor
from transformers import LlamaForCausalLM

from adapters.config import LoraSpec, Scope, SpecError
from adapters.inner_loop import adapt, reference_logprobs, support_gradients, support_losses
from adapters.layer import LoraHooks, Rows
from adapters.objective import (
    BETA,
    IGNORE,
    RATING_WEIGHT,
    Role,
    completion_logprobs,
    demonstration_loss,
    feedback_loss,
    row_weights,
)
from adapters.prefix import continue_from
from adapters.state import stack
from adapters.support import Example, Support, make_support

roles_strategy = st.lists(
    st.sampled_from(
        [(Role.TAUGHT,), (Role.CHOSEN, Role.REJECTED), (Role.LIKED,), (Role.DISLIKED,)]
    ),
    min_size=1,
    max_size=8,
)


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    return make_llama()


def mixed(seed: int = 1) -> list[list[Example]]:
    """Three sessions: all kinds, a preference alone, ratings alone."""
    first, second, third, fourth, fifth, sixth = random_examples(6, seed)
    other = (7, 8, 9, 10, 11, 12)
    return [
        [first, replace(second, rejected=other), replace(third, rating=-1)],
        [replace(fourth, rejected=other[:2])],
        [replace(fifth, rating=1), replace(sixth, rating=-1)],
    ]


def support_of(
    model: LlamaForCausalLM, hooks: LoraHooks, spec: LoraSpec, examples: list[list[Example]]
) -> Support:
    flat = [example for own in examples for example in own]
    prefix = prefill_examples(model, flat, spec.scope)
    support = make_support(examples, prefix, spec.scope, CPU)
    return replace(support, reference=reference_logprobs(model, hooks, support))


def test_each_role_costs_what_its_paper_says() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(5, 4, 9, generator=generator) * 3
    targets = torch.tensor([[1, 2, 3, IGNORE]] * 4 + [[IGNORE, 4, 4, 4]])
    roles = [Role.TAUGHT, Role.CHOSEN, Role.REJECTED, Role.LIKED, Role.DISLIKED]
    reference = torch.tensor([-9.0, -8.0, -7.0, -12.0, -3.0])
    found = feedback_loss(logits, targets, roles, reference).tolist()
    each = [
        [float(logits[row, t].log_softmax(-1)[max(0, int(targets[row, t]))]) for t in range(4)]
        for row in range(5)
    ]
    sums = [sum(row[:3]) for row in each[:4]] + [sum(each[4][1:])]
    ratios = [BETA * (total - float(r)) for total, r in zip(sums, reference, strict=True)]

    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    expected = [
        -sums[0] / 3,
        -sums[1] / 3 - math.log(sigmoid(ratios[1] - ratios[2])),
        0.0,
        1 - sigmoid(ratios[3]),
        sigmoid(ratios[4]),
    ]
    assert found == pytest.approx(expected, abs=1e-5)


@given(roles=roles_strategy)
@settings(deadline=None)
def test_ratings_never_outweigh_what_is_told_outright(roles: list[tuple[Role, ...]]) -> None:
    flat = [role for example in roles for role in example]
    sessions = torch.tensor([0] * len(flat))
    weights = row_weights(flat, sessions, 1).tolist()
    rated = sum(w for w, r in zip(weights, flat, strict=True) if r in (Role.LIKED, Role.DISLIKED))
    firm = sum(w for w, r in zip(weights, flat, strict=True) if r in (Role.TAUGHT, Role.CHOSEN))
    assert firm == pytest.approx(0 if firm == 0 else 1)
    assert rated <= RATING_WEIGHT + 1e-6
    alone = [r for r in flat if r not in (Role.LIKED, Role.DISLIKED)]
    if alone:
        own = row_weights(alone, torch.tensor([0] * len(alone)), 1).tolist()
        kept = [
            w for w, r in zip(weights, flat, strict=True) if r not in (Role.LIKED, Role.DISLIKED)
        ]
        assert kept == pytest.approx(own), "ratings take nothing away from the rest"


@pytest.mark.parametrize("scope", ["activated", "full"])
def test_the_gradient_is_the_slope_of_the_loss(llama: LlamaForCausalLM, scope: Scope) -> None:
    spec = llama_spec(scope)
    double = in_float64(make_llama())
    hooks = LoraHooks(double, spec)
    support = support_of(double, hooks, spec, mixed())
    start = stack([random_adapter(llama, spec, seed) for seed in range(3)])
    tensors = {name: tensor.double() for name, tensor in start.items()}
    generator = torch.Generator().manual_seed(5)
    direction = {
        name: torch.randn(t.shape, generator=generator, dtype=torch.float64)
        for name, t in tensors.items()
    }

    def at(step: float) -> Tensor:
        moved = {name: t + step * direction[name] for name, t in tensors.items()}
        with torch.no_grad():
            return support_losses(double, hooks, moved, support, 0.0).sum()

    _, gradients = support_gradients(double, hooks, tensors, support)
    along = sum(float((gradients[name] * direction[name]).sum()) for name in tensors)
    slope = float(at(1e-5) - at(-1e-5)) / 2e-5
    hooks.remove()
    assert along == pytest.approx(slope, rel=1e-5)


def test_kinds_side_by_side_learn_as_if_alone(llama: LlamaForCausalLM) -> None:
    spec = llama_spec()
    starts = [random_adapter(llama, spec, seed) for seed in range(3)]
    hooks = LoraHooks(llama, spec)
    rule = make_rule(starts[0])
    together, _ = adapt(llama, hooks, stack(starts), support_of(llama, hooks, spec, mixed()), rule)
    for session, own in enumerate(mixed()):
        support = support_of(llama, hooks, spec, [own])
        alone, _ = adapt(llama, hooks, stack([starts[session]]), support, rule)
        for name, tensor in alone.items():
            error = float((together[name][session] - tensor[0]).norm() / tensor[0].norm())
            assert error < 1e-5, name
    hooks.remove()


@pytest.mark.parametrize("tokens", [1, 7, 30])
def test_parts_add_up_and_keep_pairs_together(llama: LlamaForCausalLM, tokens: int) -> None:
    spec = llama_spec()
    hooks = LoraHooks(llama, spec)
    support = support_of(llama, hooks, spec, mixed())
    tensors = stack([random_adapter(llama, spec, seed) for seed in range(3)])
    whole, whole_gradients = support_gradients(llama, hooks, tensors, support)
    parts = list(support.parts(lambda: tokens))
    sums = torch.zeros_like(whole)
    gradients = {name: torch.zeros_like(g) for name, g in whole_gradients.items()}
    for part in parts:
        assert part.roles is not None
        assert part.roles[-1] is not Role.CHOSEN
        loss, found = support_gradients(llama, hooks, tensors, part)
        sums += loss
        for name, gradient in found.items():
            gradients[name] += gradient
    hooks.remove()
    assert len(parts) > 1 or tokens == 30
    torch.testing.assert_close(sums, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients, whole_gradients, atol=1e-5, rtol=1e-4)


def changes(llama: LlamaForCausalLM, learned: Example, asked: Example) -> list[float]:
    """How the log-probabilities of the completions of ``asked`` change when ``learned`` is."""
    spec = llama_spec()
    hooks = LoraHooks(llama, spec)
    start = random_adapter(llama, spec, 1)
    support = support_of(llama, hooks, spec, [[learned]])
    moved, _ = adapt(llama, hooks, stack([start]), support, make_rule(start, steps=3, size=0.3))
    turns = support_of(llama, hooks, spec, [[asked]]).turns
    found = []
    for tensors in (moved, stack([start])):
        rows = {name: tensor.expand(len(turns.ids), -1, -1) for name, tensor in tensors.items()}
        with torch.no_grad(), hooks.use(Rows(rows, None, None)):
            logits = continue_from(llama, turns.prefix, turns.ids)
        found.append(completion_logprobs(logits, turns.targets))
    hooks.remove()
    after, before = found
    return (after - before).tolist()


def test_each_kind_moves_its_completions_its_way(llama: LlamaForCausalLM) -> None:
    base = random_examples(2, 4)[1]
    pair = replace(base, rejected=(7, 8, 9))
    (liked,) = changes(llama, replace(base, rating=1), base)
    (disliked,) = changes(llama, replace(base, rating=-1), base)
    assert disliked < 0 < liked
    chosen, rejected = changes(llama, pair, pair)
    shown, other = changes(llama, base, pair)
    assert chosen > 0
    assert chosen - rejected > shown - other, "a preference tells them further apart"


def test_demonstrations_alone_cost_their_cross_entropy_as_before(llama: LlamaForCausalLM) -> None:
    spec = llama_spec()
    hooks = LoraHooks(llama, spec)
    support = make_support(
        [random_examples(2, 1)],
        prefill_examples(llama, random_examples(2, 1), "activated"),
        "activated",
        CPU,
    )
    assert support.roles is None
    logits = torch.randn(*support.turns.targets.shape, 100)
    roles, reference = [Role.TAUGHT] * 2, torch.zeros(2)
    assert torch.equal(
        feedback_loss(logits, support.turns.targets, roles, reference),
        demonstration_loss(logits, support.turns.targets),
    )
    hooks.remove()


def test_a_rating_without_reference_is_refused(llama: LlamaForCausalLM) -> None:
    spec = llama_spec()
    hooks = LoraHooks(llama, spec)
    support = replace(support_of(llama, hooks, spec, mixed()), reference=None)
    tensors = stack([random_adapter(llama, spec, seed) for seed in range(3)])
    with pytest.raises(SpecError, match="untaught"):
        support_losses(llama, hooks, tensors, support, 0.0)
    hooks.remove()
