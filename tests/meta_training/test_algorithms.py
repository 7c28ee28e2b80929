"""Every algorithm's update against what can be written down by hand, or computed another way."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from quadratic import Problem, make_problem
from torch import Tensor

from meta_training.algorithms.choice import choose
from meta_training.algorithms.controls import MultiTask
from meta_training.algorithms.episodes import Algorithm
from meta_training.algorithms.maml import Maml
from meta_training.algorithms.maml_plus_plus import LEAST, MamlPlusPlus
from meta_training.algorithms.reptile import Reptile
from meta_training.recipe_parts import ALGORITHMS, OuterPart


def gradients(
    problem: Problem, algorithm: Algorithm, steps: int = 3, progress: float = 0.0
) -> dict[str, Tensor]:
    for leaf in problem.learned.values():
        leaf.grad = None
    algorithm.backward(problem.episodes(), steps, progress)
    return {
        name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for name, leaf in problem.learned.items()
    }


def by_hand(problem: Problem, weights: list[float], second_order: bool) -> dict[str, Tensor]:
    """The chain rule on paper: x' = x - s_k f * H (x - a), pulled back step by step."""
    x0, sizes, factors, base = (leaf.detach() for leaf in problem.learned.values())
    found = {name: torch.zeros_like(leaf) for name, leaf in problem.learned.items()}
    count = len(problem.goal)
    for s in range(count):
        curve, goal = problem.curve[s], problem.goal[s] + 0.3 * base
        states, steps = [x0], []
        for k in range(len(weights)):
            steps.append(curve @ (states[-1] - goal))  # the gradient, without its size
            states.append(states[-1] - sizes[k] * factors * steps[-1])
        v = torch.zeros_like(x0)
        for k in reversed(range(len(weights))):
            away = states[k + 1] - problem.query_goal[s]
            v = v + weights[k] / count * (problem.query_curve[s] @ away + base)
            found["base"] += weights[k] / count * states[k + 1]
            found["sizes"][k] += -(factors * steps[k]) @ v
            found["factors"] += -sizes[k] * steps[k] * v
            if second_order:
                found["base"] += 0.3 * curve @ (sizes[k] * factors * v)  # goal = a + 0.3 base
                v = v - curve @ (sizes[k] * factors * v)
        found["x"] += v
    return found


def check(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, wanted in expected.items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("flat", [False, True])
def test_maml_is_the_chain_rule(flat: bool) -> None:
    problem = make_problem()
    check(gradients(problem, Maml(flat=flat)), by_hand(problem, [0, 0, 1], True))


def test_first_order_maml_drops_the_curvature() -> None:
    problem = make_problem()
    first = by_hand(problem, [0, 0, 1], False)
    check(gradients(problem, Maml(1.0)), first)
    assert not torch.allclose(first["x"], by_hand(problem, [0, 0, 1], True)["x"])


@pytest.mark.parametrize("flat", [False, True])
def test_the_order_changes_when_its_share_is_done(flat: bool) -> None:
    problem, algorithm = make_problem(), Maml(0.4, flat)
    for progress, exact in ((0.0, False), (0.39, False), (0.4, True), (1.0, True)):
        found = gradients(problem, algorithm, progress=progress)
        check(found, by_hand(problem, [0, 0, 1], exact))


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("flat", [False, True])
def test_maml_plus_plus_weighs_every_step(progress: float, flat: bool) -> None:
    problem, algorithm = make_problem(), MamlPlusPlus(flat=flat, multi_step_share=0.6)
    weights = list(algorithm.weights(3, progress))
    check(gradients(problem, algorithm, progress=progress), by_hand(problem, weights, True))


def test_the_weights_of_earlier_steps_fall_and_all_add_up_to_one() -> None:
    algorithm = MamlPlusPlus(multi_step_share=0.5)
    rows = [algorithm.weights(5, progress) for progress in (0, 0.1, 0.25, 0.49, 0.5, 1)]
    assert rows[0] == pytest.approx([0.2] * 5)
    assert rows[2] == pytest.approx([0.1] * 4 + [0.6])
    assert rows[-1] == pytest.approx([LEAST / 5] * 4 + [1 - 4 * LEAST / 5])
    assert all(sum(row) == pytest.approx(1) for row in rows)
    assert all(a[0] >= b[0] and a[-1] <= b[-1] for a, b in pairwise(rows))
    assert MamlPlusPlus(multi_step_share=0).weights(1, 0) == pytest.approx([1])


@pytest.mark.parametrize("flat", [False, True])
def test_a_clipped_step_by_torch_func(flat: bool) -> None:
    """Where the clip bites, the step is no linear map; torch.func differentiates its own code."""
    problem = make_problem(clip=0.4)
    goals, curves = problem.goal, problem.curve

    def loss(x: Tensor, sizes: Tensor, factors: Tensor, base: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for s in range(len(goals)):
            place = x
            for k in range(3):

                def support(at: Tensor, s: int = s) -> Tensor:
                    away = at - goals[s] - 0.3 * base
                    return away @ curves[s] @ away / 2

                step = torch.func.grad(support)(place)
                length = step.square().sum().sqrt()
                shorter = torch.where(length > problem.clip, problem.clip / length, 1.0)
                place = place - sizes[k] * factors * shorter * step
            away = place - problem.query_goal[s]
            total = total + away @ problem.query_curve[s] @ away / 2 + place @ base
        return total / len(goals)

    leaves = tuple(leaf.detach() for leaf in problem.learned.values())
    expected = torch.func.grad(loss, argnums=(0, 1, 2, 3))(*leaves)
    found = gradients(problem, Maml(flat=flat))
    for name, wanted in zip(problem.learned, expected, strict=True):
        torch.testing.assert_close(found[name], wanted, rtol=1e-9, atol=1e-11, msg=name)


def test_reptile_is_the_way_to_the_adapted_tensors() -> None:
    problem = make_problem()
    x0, sizes, factors, base = (leaf.detach() for leaf in problem.learned.values())
    ends = []
    for s in range(len(problem.goal)):
        x = x0
        for k in range(3):
            if k % 2:  # the queries' turn
                step = problem.query_curve[s] @ (x - problem.query_goal[s]) + base
            else:
                step = problem.curve[s] @ (x - problem.goal[s] - 0.3 * base)
            x = x - sizes[k] * factors * step
        ends.append(x)
    found = gradients(problem, Reptile())
    torch.testing.assert_close(found["x"], x0 - torch.stack(ends).mean(0))
    assert not any(found[name].any() for name in ("sizes", "factors", "base"))


def test_multitask_takes_no_steps() -> None:
    problem = make_problem()
    x, base = problem.x.detach(), problem.base.detach()
    count = len(problem.goal)
    expected = torch.zeros_like(x)
    for s in range(count):
        expected += problem.query_curve[s] @ (x - problem.query_goal[s]) + base
        expected += problem.curve[s] @ (x - problem.goal[s] - 0.3 * base)
    found = gradients(problem, MultiTask())
    torch.testing.assert_close(found["x"], expected / (2 * count))
    assert not found["sizes"].any()


@pytest.mark.parametrize("algorithm", [Maml(), Maml(flat=True), Maml(1.0), MamlPlusPlus()])
def test_descending_the_outer_gradient_adapts_better(algorithm: Algorithm) -> None:
    problem = make_problem()
    optimizer = torch.optim.Adam(list(problem.learned.values())[:3], lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(algorithm.backward(problem.episodes(), 3, 0.9).loss.item())
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("flat", [False, True])
def test_a_loss_beside_is_added_to_everything(flat: bool) -> None:
    problem = make_problem()
    alone = gradients(problem, Maml(flat=flat))
    for leaf in problem.learned.values():
        leaf.grad = None
    Maml(flat=flat).backward(problem.episodes(), 3, 0.0, aside=problem.base.square().sum())
    assert problem.base.grad is not None
    torch.testing.assert_close(
        problem.base.grad - alone["base"], 2 * problem.base.detach(), rtol=1e-9, atol=1e-10
    )


def test_every_name_has_an_algorithm() -> None:
    made = [choose(OuterPart.model_validate({"algorithm": name})) for name in ALGORITHMS]
    assert all(hasattr(algorithm, "backward") for algorithm in made)
    assert choose(OuterPart(algorithm="fomaml")) == Maml(1.0)
    assert choose(OuterPart(gradient="adjoint", first_order_share=0.3)) == Maml(0.3, True)
