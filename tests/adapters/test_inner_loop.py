"""The inner step keeps sessions apart, leaves the base alone and moves as its rule says."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import (
    CPU,
    GPT2_TARGETS,
    LLAMA_TARGETS,
    llama_spec,
    make_anchors,
    make_gpt2,
    make_llama,
    make_rule,
    make_support,
    random_adapter,
    random_examples,
)
from torch import nn
from transformers import LlamaForCausalLM

from adapters.config import InnerRule, LoraSpec, Scope, SpecError
from adapters.inner_loop import adapt, inner_step, support_gradients, support_losses
from adapters.layer import LoraHooks, Rows
from adapters.objective import IGNORE, demonstration_loss
from adapters.prefix import continue_from, empty_prefix
from adapters.state import Tensors, fingerprint, initial_tensors, repeat, stack, take
from adapters.support import Example, make_turns


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    return make_llama()


def taught(
    model: nn.Module,
    spec: LoraSpec,
    examples: list[Example],
    sessions: list[int],
    starts: list[Tensors],
    anchors: list[Example] | None = None,
    steps: int = 3,
) -> Tensors:
    """``starts`` after a few inner steps on ``examples``, stacked."""
    hooks = LoraHooks(model, spec)
    try:
        kept = make_anchors(model, hooks, spec, anchors) if anchors else None
        support = make_support(model, spec, examples, sessions, kept)
        rule = make_rule(starts[0])
        rule = InnerRule(rule.steps, rule.step_sizes, rule.clip, 0.5 if anchors else 0.0)
        moved, _ = adapt(model, hooks, stack(starts), support, rule, steps)
        return moved
    finally:
        hooks.remove()


@pytest.mark.parametrize("scope", ["activated", "full"])
def test_adapting_changes_neither_the_base_nor_the_start(
    llama: LlamaForCausalLM, scope: Scope
) -> None:
    spec = llama_spec(scope)
    starts = [random_adapter(llama, spec, seed) for seed in range(2)]
    before, copies = fingerprint(llama), [take(stack([start]), 0) for start in starts]
    moved = taught(llama, spec, random_examples(3, 1), [0, 1, 1], starts)
    assert fingerprint(llama) == before
    assert all(parameter.grad is None for parameter in llama.parameters())
    for index, (start, copy) in enumerate(zip(starts, copies, strict=True)):
        assert all(torch.equal(start[name], copy[name]) for name in start)
        assert not any(torch.equal(moved[name][index], start[name]) for name in start)
    assert not any(tensor.requires_grad for tensor in moved.values())


def test_a_session_without_examples_stays_bit_for_bit(llama: LlamaForCausalLM) -> None:
    spec = llama_spec()
    starts = [random_adapter(llama, spec, seed) for seed in range(3)]
    moved = taught(llama, spec, random_examples(3, 1), [0, 2, 2], starts)
    for name, tensor in starts[1].items():
        assert torch.equal(moved[name][1], tensor)
        assert not torch.equal(moved[name][0], starts[0][name])


def test_another_sessions_examples_and_adapter_do_not_matter(llama: LlamaForCausalLM) -> None:
    spec = llama_spec()
    mine, other = random_examples(2, 1), random_examples(2, 1)
    other[1] = Example(
        tuple(t + 1 for t in other[1].prompt), other[1].header, (9,) * len(other[1].completion)
    )
    starts = [random_adapter(llama, spec, seed) for seed in range(3)]
    sessions = [0, 0, 1, 1]
    first = taught(llama, spec, mine + mine, sessions, starts[:2])
    second = taught(llama, spec, mine + other, sessions, [starts[0], starts[2]])
    for name in starts[0]:
        assert torch.equal(first[name][0], second[name][0])
        assert not torch.equal(first[name][1], second[name][1])


@pytest.mark.parametrize("scope", ["activated", "full"])
@pytest.mark.parametrize("anchors", [None, random_examples(2, 7)])
def test_alone_and_in_a_batch_agree(
    llama: LlamaForCausalLM, scope: Scope, anchors: list[Example] | None
) -> None:
    spec = llama_spec(scope)
    examples, sessions = random_examples(6, 2), [2, 0, 1, 1, 2, 1]
    starts = [random_adapter(llama, spec, seed) for seed in range(3)]
    batch = taught(llama, spec, examples, sessions, starts, anchors)
    for session, start in enumerate(starts):
        own = [e for e, s in zip(examples, sessions, strict=True) if s == session]
        alone = taught(llama, spec, own, [0] * len(own), [start], anchors)
        for name, tensor in alone.items():
            error = float((batch[name][session] - tensor[0]).norm() / tensor[0].norm())
            assert error < 1e-5, name


@pytest.mark.parametrize("scope", ["activated", "full"])
@pytest.mark.parametrize("tokens", [1, 20, 10_000])
def test_the_parts_of_a_support_add_up_to_it(
    llama: LlamaForCausalLM, scope: Scope, tokens: int
) -> None:
    spec = llama_spec(scope)
    hooks = LoraHooks(llama, spec)
    sessions = [2, 0, 1, 1, 2, 1]
    anchors = make_anchors(llama, hooks, spec, random_examples(2, 7))
    support = make_support(llama, spec, random_examples(6, 2), sessions, anchors)
    tensors = stack([random_adapter(llama, spec, seed) for seed in range(3)])
    losses, gradients = support_gradients(llama, hooks, tensors, support, 0.7)
    parts = list(support.parts(lambda: tokens))
    rows, width = support.turns.ids.shape
    assert len(parts) == -(-rows // min(max(1, tokens // width), rows)) + 1, "anchors are the last"
    each = [support_gradients(llama, hooks, tensors, part, 0.7) for part in parts]
    hooks.remove()
    torch.testing.assert_close(sum(loss for loss, _ in each), losses)
    for name, gradient in gradients.items():
        torch.testing.assert_close(sum(g[name] for _, g in each), gradient, atol=1e-6, rtol=1e-4)


def test_a_session_is_the_mean_over_its_examples(llama: LlamaForCausalLM) -> None:
    """An example given twice weighs as two in the mean, and a long answer as a short one."""
    spec = llama_spec()
    hooks = LoraHooks(llama, spec)
    tensors = repeat(random_adapter(llama, spec), 1)
    a, b = random_examples(2, 3)
    losses = [
        support_losses(
            llama, hooks, tensors, make_support(llama, spec, list(rows), [0] * len(rows)), 0.0
        )
        for rows in [(a,), (b,), (a, b), (a, a, b)]
    ]
    hooks.remove()
    torch.testing.assert_close(losses[2], (losses[0] + losses[1]) / 2)
    torch.testing.assert_close(losses[3], (2 * losses[0] + losses[1]) / 3)


def test_one_step_is_gradient_descent_with_clip_and_sizes(llama: LlamaForCausalLM) -> None:
    spec = llama_spec()
    hooks = LoraHooks(llama, spec)
    tensors = {n: t.clone().requires_grad_() for n, t in random_adapter(llama, spec).items()}
    support = make_support(llama, spec, random_examples(3, 4), [0, 0, 0])
    loss = support_losses(
        llama, hooks, {n: t.unsqueeze(0) for n, t in tensors.items()}, support, 0.0
    )
    gradients = dict(
        zip(tensors, torch.autograd.grad(loss.sum(), list(tensors.values())), strict=True)
    )
    length = torch.stack([g.norm() for g in gradients.values()]).norm()
    sizes = {name: torch.tensor(0.1 + 0.01 * i) for i, name in enumerate(tensors)}
    for clip in (float(length) / 3, float(length) * 3):
        moved, report = inner_step(llama, hooks, repeat(tensors, 1), support, sizes, clip)
        factor = min(1.0, clip / float(length))
        torch.testing.assert_close(report.losses, loss.detach())
        torch.testing.assert_close(report.gradient_norms[0], length)
        for name, tensor in tensors.items():
            expected = tensor - sizes[name] * factor * gradients[name]
            torch.testing.assert_close(moved[name][0], expected.detach())
    hooks.remove()


def test_learning_lowers_the_loss_from_the_plain_start(llama: LlamaForCausalLM) -> None:
    spec = llama_spec()
    start = initial_tensors(llama, spec, torch.Generator().manual_seed(0))
    hooks = LoraHooks(llama, spec)
    support = make_support(llama, spec, random_examples(3, 5), [0, 0, 0])
    rule = InnerRule(1, {name: torch.tensor([0.3]) for name in start}, 1.0)
    _, reports = adapt(llama, hooks, repeat(start, 1), support, rule, steps=6)
    hooks.remove()
    losses = [float(report.losses) for report in reports]
    assert len(losses) == 6  # beyond the learned K the last sizes go on
    assert losses == sorted(losses, reverse=True)


def test_steps_beyond_k_use_the_last_sizes() -> None:
    rule = InnerRule(2, {"x": torch.tensor([0.1, 0.2])}, 1.0)
    assert [float(rule.sizes_at(step)["x"]) for step in range(4)] == pytest.approx(
        [0.1, 0.2, 0.2, 0.2]
    )


def test_anchors_pull_the_answer_back(llama: LlamaForCausalLM) -> None:
    spec = llama_spec()
    start = random_adapter(llama, spec)
    examples, anchors = random_examples(2, 8), random_examples(2, 9)
    hooks = LoraHooks(llama, spec)
    kept = make_anchors(llama, hooks, spec, anchors)
    support = make_support(llama, spec, examples, [0, 0], kept)
    losses = [
        float(support_losses(llama, hooks, repeat(start, 1), support, weight))
        for weight in (0.0, 1.0, 2.0)
    ]
    zero = repeat(initial_tensors(llama, spec, torch.Generator()), 1)
    untaught = [float(support_losses(llama, hooks, zero, support, w)) for w in (0.0, 1.0)]
    hooks.remove()
    assert losses[1] > losses[0] + 0.01
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-4)
    assert untaught[0] == pytest.approx(untaught[1], abs=1e-5)


def test_gpt2_learns_with_hooks_on_conv1d() -> None:
    model = make_gpt2()
    spec = LoraSpec(4, GPT2_TARGETS)
    start = initial_tensors(model, spec, torch.Generator().manual_seed(0))
    before = fingerprint(model)
    hooks = LoraHooks(model, spec)
    support = make_support(model, spec, random_examples(3, 5), [0, 1, 1])
    rule = InnerRule(1, {name: torch.tensor([0.3]) for name in start}, 1.0)
    _, reports = adapt(model, hooks, repeat(start, 2), support, rule, steps=4)
    assert bool((reports[-1].losses < reports[0].losses).all())
    assert fingerprint(model) == before


def test_fewer_targets_and_another_rank(llama: LlamaForCausalLM) -> None:
    spec = LoraSpec(2, ("v_proj",), 4.0)
    moved = taught(llama, spec, random_examples(2, 1), [0, 1], [random_adapter(llama, spec)] * 2)
    assert {name.split(".")[-2] for name in moved} == {"v_proj"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (lambda: LoraSpec(0, ("q_proj",)), "rank"),
        (lambda: LoraSpec(4, ()), "targets"),
        (lambda: LoraSpec(4, ("q_proj",), scope="all"), "scope"),
        (lambda: InnerRule(0, {}, 1.0), "steps"),
        (lambda: InnerRule(2, {"x": torch.ones(3)}, 1.0), "x must have shape"),
        (lambda: LoraHooks(make_llama(), LoraSpec(4, ("q", "v_proj"))), "no module named q"),
        (lambda: LoraHooks(make_llama(), LoraSpec(4, ("mlp",))), "no weight matrix"),
        (
            lambda: make_turns([Example((1,), (), (2,))], empty_prefix(1, CPU), "activated", CPU),
            "one token",
        ),
        (lambda: make_turns([Example((1,), (3,), (2,))], None, "activated", CPU), "prefilled"),
    ],
)
def test_forms_that_cannot_work_are_refused(spec: object, message: str) -> None:
    assert callable(spec)
    with pytest.raises(SpecError, match=message):
        spec()


def test_the_head_keeps_its_place_among_targets(llama: LlamaForCausalLM) -> None:
    names = [name.split(".")[-2] for name in random_adapter(llama, llama_spec())]
    assert names[:14:2] == list(LLAMA_TARGETS)


tokens = st.lists(st.integers(5, 99), max_size=6).map(tuple)
examples_strategy = st.lists(
    st.builds(Example, tokens, tokens.filter(bool), tokens.filter(bool)), min_size=1, max_size=4
)


@settings(max_examples=30, deadline=None)
@given(examples=examples_strategy)
def test_turns_teach_exactly_the_completion(examples: list[Example]) -> None:
    prefix = empty_prefix(len(examples), CPU)
    activated = make_turns(examples, prefix, "activated", CPU)
    full = make_turns(examples, None, "full", CPU)
    for turns in (activated, full):
        for row, example in enumerate(examples):
            ids, targets = turns.ids[row].tolist(), turns.targets[row].tolist()
            taught = [i for i, target in enumerate(targets) if target != IGNORE]
            assert tuple(targets[i] for i in taught) == example.completion
            assert all(ids[i + 1] == targets[i] for i in taught[:-1])
            assert ids[taught[0]] == example.header[-1]


@settings(max_examples=15, deadline=None)
@given(examples=examples_strategy, seed=st.integers(0, 99))
def test_zero_b_gives_the_base_and_scopes_agree(
    llama: LlamaForCausalLM, examples: list[Example], seed: int
) -> None:
    """Without an adapter's effect both scopes lay out the same computation."""
    zero = initial_tensors(llama, llama_spec(), torch.Generator().manual_seed(seed))
    losses = []
    for scope in get_args(Scope):
        spec = llama_spec(scope)
        hooks = LoraHooks(llama, spec)
        support = make_support(llama, spec, examples, [0] * len(examples))
        losses.append(float(support_losses(llama, hooks, repeat(zero, 1), support, 0.0)))
        hooks.remove()
    alone = []
    for example in examples:
        ids = torch.tensor([example.prompt + example.header + example.completion])
        logits = llama(input_ids=ids).logits[:, -len(example.completion) - 1 : -1]
        alone.append(float(demonstration_loss(logits, ids[:, -len(example.completion) :])))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] == pytest.approx(sum(alone) / len(alone), rel=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    slots=st.lists(st.integers(0, 2), min_size=1, max_size=4),
    order=st.permutations([0, 1, 2]),
)
def test_a_row_depends_on_its_own_slot_only(
    llama: LlamaForCausalLM, slots: list[int], order: list[int]
) -> None:
    """Moving adapters to other slots, and rows along with them, changes nothing."""
    spec = llama_spec()
    adapters = [random_adapter(llama, spec, seed) for seed in range(3)]
    hooks = LoraHooks(llama, spec)
    ids = torch.arange(5, 5 + 3 * len(slots)).view(len(slots), 3)
    prefix = empty_prefix(len(slots), CPU)
    moved = [adapters[index] for index in order]
    with torch.no_grad():
        with hooks.use(Rows(stack(adapters), torch.tensor(slots))):
            before = continue_from(llama, prefix, ids)
        places = torch.tensor([order.index(slot) for slot in slots])
        with hooks.use(Rows(stack(moved), places)):
            after = continue_from(llama, prefix, ids)
    hooks.remove()
    assert torch.equal(before, after)
