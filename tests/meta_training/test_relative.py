"""The relative score by its closed form, its interval, and the loss that it is made of."""

from __future__ import annotations

import json
import math
import random
import statistics

import pytest
import torch
from spoken import KNOWN, make_spoken
from transformers import PreTrainedTokenizerFast

from adapters.chat import ChatEncoder
from adapters.config import Gate
from meta_training.evaluation.cells import Task
from meta_training.evaluation.relative import (
    FLOOR,
    QueryLoss,
    apart,
    by_cell,
    losses_of,
    relative,
)
from meta_training.learner import Learner
from meta_training.tasks.episodes import Episode, Turn

REFERENCE = {("a", 0): 1.0, ("a", 1): 2.0, ("b", 0): 4.0, ("b", 1): 0.5}
OWN = {("a", 0): 0.5, ("a", 1): 3.0, ("b", 0): 4.0, ("b", 1): 0.25}
RATIOS = [0.5, 1.5, 1.0, 0.5]


def test_the_score_is_the_mean_of_each_tasks_ratio() -> None:
    found = relative(OWN, REFERENCE)
    assert found.mean == pytest.approx(statistics.fmean(RATIOS))
    assert found.means == pytest.approx(7.75 / 7.5)
    assert found.tasks == 4


def test_its_interval_is_the_bootstraps_over_tasks() -> None:
    """Drawn again here, one resample at a time."""
    rng = random.Random(0)
    means = sorted(statistics.fmean(rng.choices(RATIOS, k=4)) for _ in range(20_000))
    found = relative(OWN, REFERENCE)
    assert found.low == pytest.approx(means[500], abs=0.03)
    assert found.high == pytest.approx(means[-501], abs=0.03)
    assert relative(OWN, REFERENCE) == found, "the same at every call"


def test_a_model_against_itself_is_one_without_doubt() -> None:
    found = relative(REFERENCE, REFERENCE)
    assert (found.mean, found.low, found.high, found.means) == (1.0, 1.0, 1.0, 1.0)


def test_half_the_loss_everywhere_is_half_without_doubt() -> None:
    found = relative({key: loss / 2 for key, loss in REFERENCE.items()}, REFERENCE)
    assert (found.mean, found.low, found.high) == (0.5, 0.5, 0.5)


def test_only_tasks_that_both_have_count() -> None:
    found = relative(OWN | {("c", 0): 9.0}, REFERENCE | {("d", 0): 0.1})
    assert found == relative(OWN, REFERENCE)
    with pytest.raises(ValueError, match="no task"):
        relative({("c", 0): 1.0}, REFERENCE)


def test_tiny_losses_count_as_the_floor_on_both_sides() -> None:
    tiny = FLOOR / 1000
    assert relative({("a", 0): tiny}, {("a", 0): tiny / 50}).mean == 1.0
    assert relative({("a", 0): 2 * FLOOR}, {("a", 0): tiny}).mean == pytest.approx(2.0)
    assert relative({("a", 0): tiny}, {("a", 0): 2 * FLOOR}).mean == pytest.approx(0.5)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_loss_that_is_no_number_makes_the_score_none(broken: float) -> None:
    for pair in ((OWN | {("a", 0): broken}, REFERENCE), (OWN, REFERENCE | {("a", 0): broken})):
        found = relative(*pair)
        assert math.isnan(found.mean)
        assert math.isnan(found.low)
        json.dumps(found.told(), allow_nan=False)


def test_one_task_has_no_interval() -> None:
    found = relative({("a", 0): 1.0}, {("a", 0): 2.0})
    assert found.mean == 0.5
    assert math.isnan(found.low)
    assert found.told() == {"mean": 0.5, "low": None, "high": None, "means": 0.5, "tasks": 1}


def test_cells_are_scored_alone() -> None:
    found = by_cell(OWN, REFERENCE)
    assert list(found) == ["a", "b"]
    assert found["a"].mean == pytest.approx(1.0)
    assert found["b"].mean == pytest.approx(0.75)


def test_two_models_are_compared_on_the_same_tasks() -> None:
    """Tasks differ much more than the models do: only pairs can tell them apart."""
    rng = random.Random(3)
    reference = {("a", task): rng.uniform(0.5, 5.0) for task in range(40)}
    first = {key: loss * rng.uniform(0.2, 2.0) for key, loss in reference.items()}
    second = {key: loss + 0.05 * reference[key] for key, loss in first.items()}
    both = (relative(first, reference), relative(second, reference))
    assert both[0].high > both[1].low, "by their own intervals they overlap"
    found = apart(second, first, reference)
    assert found.mean == pytest.approx(0.05)
    assert found.sure
    assert not apart(first, first, reference).sure


def test_losses_come_from_lines_and_nothing_is_no_number() -> None:
    rows = [
        {"cell": "a", "task": 0, "figures": {"loss": 0.5}},
        {"cell": "a", "task": 1, "figures": {"loss": None}},
    ]
    found = losses_of(rows)
    assert found["a", 0] == 0.5
    assert math.isnan(found["a", 1])


@pytest.fixture(scope="module")
def learner(tokenizer: PreTrainedTokenizerFast) -> Learner:
    return make_spoken(tokenizer)


def tasks() -> list[Task]:
    """Two tasks of different sizes, about answers that the base does not give."""
    answers = [answer for _, answer in KNOWN[1:]]
    made = []
    pairs = [(question, answer) for (question, _), answer in zip(KNOWN, answers, strict=False)]
    for half in (pairs[:4], pairs[4:]):
        support = tuple(Turn(f"{question} Please.", answer, question) for question, answer in half)
        query = tuple(Turn(question, answer, question) for question, answer in half)
        taught = frozenset(question for question, _ in half)
        made.append(Task(Episode("house_reply", support, query, (), taught), ()))
    return made


def loss_of(learner: Learner, task: Task) -> float:
    """Nats a token of a task's queries by the plain model, one query at a time."""
    found = []
    for turn in task.episode.query:
        prompt = learner.encoder.prompt([{"role": "user", "content": turn.question}]).ids
        answer = learner.encoder.completion(turn.answer)
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            logits = learner.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        chances = logits.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)]
        found.append(-float(chances.mean()))
    return statistics.fmean(found)


def losses(method: QueryLoss, of: list[Task]) -> list[float]:
    return [figures["loss"] for figures in method.scores(of)["-"]]


def test_the_loss_is_the_queries_nats_a_token(learner: Learner) -> None:
    """With adapters that do nothing and steps of no size, it is the plain model's."""
    sizes = learner.log_sizes.detach().clone()
    with torch.no_grad():
        learner.log_sizes.fill_(-30.0)
    try:
        found = losses(QueryLoss(learner), tasks())
    finally:
        with torch.no_grad():
            learner.log_sizes.copy_(sizes)
    assert found == pytest.approx([loss_of(learner, task) for task in tasks()], rel=1e-4)


def test_inner_steps_change_it_and_tasks_do_not_see_each_other(learner: Learner) -> None:
    together = losses(QueryLoss(learner), tasks())
    alone = [losses(QueryLoss(learner), [task])[0] for task in tasks()]
    assert together == pytest.approx(alone, rel=1e-4)
    plain = [loss_of(learner, task) for task in tasks()]
    assert all(abs(own - other) > 1e-3 for own, other in zip(together, plain, strict=True))


def test_it_leaves_the_learner_as_it_was(learner: Learner) -> None:
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    state = torch.get_rng_state()
    learner.zero_grad()
    losses(QueryLoss(learner), tasks())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], after) for name, after in learner.state_dict().items())
    assert all(parameter.grad is None for parameter in learner.parameters())


def test_answers_may_be_counted_in_anothers_tokens(learner: Learner) -> None:
    class Doubled(ChatEncoder):
        def completion(self, text: str) -> tuple[int, ...]:
            return super().completion(text) * 2

    own = losses(QueryLoss(learner), tasks())
    assert losses(QueryLoss(learner, learner.encoder), tasks()) == pytest.approx(own)
    halves = losses(QueryLoss(learner, Doubled(learner.encoder.tokenizer)), tasks())
    assert halves == pytest.approx([loss / 2 for loss in own])


def test_a_gate_does_not_matter_to_it(learner: Learner) -> None:
    own = losses(QueryLoss(learner), tasks())
    learner.gate = Gate(layer=1, threshold=2.0)  # nothing is ever let through
    try:
        assert losses(QueryLoss(learner), tasks()) == own
    finally:
        learner.gate = None
