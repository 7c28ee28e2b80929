"""Which answer a prompt wants: ridge regression, checked against scikit-learn's."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import Ridge
from torch.nn.functional import normalize, one_hot

from adapters.memory import RIDGE, fit_answers


def some_prompts(count: int, width: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shared = torch.ones(width)
    return normalize(torch.randn(count, width, generator=generator) + shared, dim=1)


def test_weights_are_those_of_ridge_regression() -> None:
    keys = some_prompts(9)
    answers = torch.tensor([40, 7, 7, 40, 2**62, 7, 2**62, 40, 7])
    numbers, weights = fit_answers(keys, answers)
    assert numbers.tolist() == [7, 40, 2**62]
    wanted = one_hot(torch.searchsorted(numbers, answers), 3).numpy()
    ridge = Ridge(alpha=RIDGE, fit_intercept=False).fit(keys.double().numpy(), wanted)
    np.testing.assert_allclose(weights.numpy(), (1 + RIDGE) * ridge.coef_.T, atol=1e-5)


def test_one_prompt_wants_its_answer_and_a_strange_one_wants_none() -> None:
    key, strange = torch.eye(5)[:1], torch.eye(5)[1:2]
    _, weights = fit_answers(key, torch.tensor([3]))
    torch.testing.assert_close(key @ weights, torch.ones(1, 1))
    torch.testing.assert_close(strange @ weights, torch.zeros(1, 1))


def test_what_all_questions_share_decides_nothing() -> None:
    """The second question is one of the first answer's but for a word that both answers know."""
    shared, first, second = torch.eye(3)
    keys = normalize(torch.stack([first, 3 * shared + second, 3 * shared + second]), dim=1)
    asked = normalize(shared + 0.6 * first, dim=0)
    answers = torch.tensor([0, 1, 1])
    _, weights = fit_answers(keys, answers)
    prototypes = torch.stack([keys[0], keys[1]]) @ asked
    assert prototypes[1] > prototypes[0], "the mean of an answer's prompts goes by what is shared"
    scores = asked @ weights
    assert scores.argmax() == 1, "one answer's only: it is known for that word"
    both = torch.cat([keys, normalize(3 * shared + first, dim=0).unsqueeze(0)])
    _, weights = fit_answers(both, torch.tensor([0, 1, 1, 0]))
    assert (asked @ weights).argmax() == 0


def test_the_order_of_what_was_taught_does_not_matter() -> None:
    keys, answers = some_prompts(8), torch.tensor([1, 2, 3, 1, 2, 3, 1, 2])
    order = torch.tensor([5, 2, 7, 0, 1, 6, 4, 3])
    numbers, weights = fit_answers(keys, answers)
    again, others = fit_answers(keys[order], answers[order])
    assert torch.equal(numbers, again)
    torch.testing.assert_close(weights, others, atol=1e-5, rtol=0)
