"""Which tasks count more: hard classes are drawn more often, batches that agree weigh more."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from mini_run import meta_train

from meta_training.algorithms.agreement import agreement, give_gradient, take_gradient
from meta_training.recipe import Recipe
from meta_training.tasks.difficulty import LEAST, MOST, Difficulty
from meta_training.tasks.episodes import Shape, kind_of
from meta_training.tasks.families import Families
from meta_training.tasks.sources import Intent


def test_a_class_is_drawn_by_what_it_cost() -> None:
    hard = Difficulty()
    names = ["a", "b", "c", "unknown"]
    assert hard.weights(names) == [1.0] * 4
    hard.note(["a", "b", "c"], [1.0, 2.0, 3.0])
    assert hard.weights(names) == pytest.approx([0.5, 1.0, 1.5, 1.0])
    hard.note(["a"], [11.0])  # 0.7 * 1 + 0.3 * 11 = 4; the mean is 3
    assert hard.weights(["a"]) == pytest.approx([4 / 3])
    hard.note(["a", "b"], [math.nan, math.inf])
    assert hard.weights(["a"]) == pytest.approx([4 / 3])


def test_weights_are_bounded_and_shares_follow_them() -> None:
    hard = Difficulty()
    hard.note(["easy", "x", "y", "hard"], [0.0, 1.0, 1.0, 98.0])
    weights = hard.weights(["easy", "x", "hard"])
    assert weights == [LEAST, LEAST, pytest.approx(98 / 25)]
    assert max(weights) <= MOST
    rng = random.Random(0)
    drawn = Counter(hard.sample(["x", "hard"], ["x", "hard"], 1, rng)[0] for _ in range(4000))
    assert drawn["hard"] / 4000 == pytest.approx(weights[2] / (weights[1] + weights[2]), abs=0.02)
    every = hard.sample(names := ["easy", "x", "y", "hard"], names, 4, rng)
    assert sorted(every) == sorted(names)


def test_episodes_have_the_hard_intents_more_often() -> None:
    intents = [Intent("s", "d", str(n), tuple(f"{n} {i}" for i in range(4))) for n in range(10)]
    hard = Difficulty()
    kinds = [kind_of(intent) for intent in intents]
    hard.note(kinds, [1.0] * 9 + [20.0])
    families = Families(intents, [], [], [f"word{chr(97 + i)}" for i in range(20)], [], (), hard)
    rng = random.Random(0)
    taught = Counter(
        kind for _ in range(300) for kind in families.label(Shape(2, 1, 1), rng).taught
    )
    assert taught[kinds[9]] > 2 * max(taught[kind] for kind in kinds[:9])


def test_averages_survive_a_checkpoint() -> None:
    first, second = Difficulty(), Difficulty()
    first.note(["a", "b"], [1.0, 3.0])
    second.load_state_dict(first.state_dict())
    assert second.weights(["a", "b"]) == first.weights(["a", "b"])


def test_batches_weigh_as_the_paper_has_it() -> None:
    gradients = torch.tensor([[1.0, 0.0], [1.0, 1.0], [-2.0, 0.5]])
    products = torch.tensor([float(g @ gradients.mean(0)) for g in gradients])
    torch.testing.assert_close(agreement(gradients), products / products.abs().sum())
    same = torch.ones(4, 3)
    torch.testing.assert_close(agreement(same), torch.full((4,), 0.25))
    against = torch.tensor([[3.0], [3.0], [-1.0]])
    assert agreement(against)[2] < 0
    torch.testing.assert_close(agreement(torch.zeros(2, 3)), torch.full((2,), 0.5))


def test_gradients_are_taken_and_given_back_in_place() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(3))]
    parameters[0].grad = torch.arange(4.0).view(2, 2)
    flat = take_gradient(parameters)
    assert flat.tolist() == [0, 1, 2, 3, 0, 0, 0]
    assert parameters[0].grad is None
    give_gradient(parameters, flat * 2)
    assert parameters[0].grad is not None
    assert parameters[0].grad.tolist() == [[0, 2], [4, 6]]


def test_agreement_needs_batches_to_compare() -> None:
    with pytest.raises(ValueError, match=r"outer\.batches to 2"):
        Recipe.model_validate({"name": "a", "outer": {"selection": "agreement"}})


@pytest.mark.parametrize(
    "outer", [{"selection": "difficulty"}, {"selection": "agreement", "batches": 2}]
)
def test_a_run_with_a_selection_ends(data: Path, tmp_path: Path, outer: dict[str, object]) -> None:
    assert meta_train(data, tmp_path, outer={"steps": 2, **outer}) == 0
    assert (tmp_path / "maml" / "artifact" / "report.json").exists()
