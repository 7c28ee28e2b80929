"""What a recipe says of the outer loop reaches its batches and its gradients."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from mini_run import RECIPE
from torch import Tensor, nn

from adapters.support import Example
from meta_training import train
from meta_training.algorithms.agreement import take_gradient
from meta_training.language import lay_out
from meta_training.pipeline import build_learner, build_outer_loop, open_workshop
from meta_training.recipe import Recipe
from meta_training.tasks.batches import Batch
from meta_training.tasks.difficulty import Difficulty

UNCLIPPED = {"clip": 1e9, "steps": 1}


class Runs:
    """Outer loops on the finished run's base; ``batches`` and ``apart`` are of the last one."""

    def __init__(self, data: Path, finished: Path, place: Path, patch: pytest.MonkeyPatch) -> None:
        self._data, self._finished, self._place = data, finished, place
        self.batches: list[Batch] = []
        self.apart: list[Tensor] = []
        patch.setattr(train, "lay_out", self._lay_out)
        patch.setattr(train, "take_gradient", self._take_gradient)

    def _lay_out(self, learner: Any, batch: Batch, *more: Any) -> Any:
        self.batches.append(batch)
        return lay_out(learner, batch, *more)

    def _take_gradient(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        self.apart.append(take_gradient(parameters))
        return self.apart[-1]

    def run(self, inner: Mapping[str, Any] = MappingProxyType({}), **outer: Any) -> Tensor:
        """(N,) the gradient of the last outer step."""
        self.batches, self.apart = [], []
        folder = self._place / str(len(list(self._place.iterdir())))
        shutil.copytree(self._finished, folder, ignore=shutil.ignore_patterns("maml"))
        parts = {"inner": RECIPE["inner"] | inner, "outer": RECIPE["outer"] | outer}
        recipe = Recipe.model_validate(RECIPE | parts)
        workshop = open_workshop(recipe, self._data, folder)
        loop = build_outer_loop(workshop, build_learner(workshop))
        assert loop.run()
        self.folder = folder
        parameters = [p for p in loop.learner.parameters() if p.requires_grad]
        return take_gradient(parameters)


@pytest.fixture
def runs(data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(data, finished, tmp_path, monkeypatch)


def close(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).norm() / expected.norm()) < 1e-3


def wrong(batch: Batch, session: int) -> tuple[int, int]:
    """Of an episode of labels: examples with another answer than a query of their kind; all."""
    own = [row for row, owner in enumerate(batch.support_sessions) if owner == session]
    asked = zip(batch.query_sessions, batch.query_kinds, batch.query, strict=True)
    right = {kind: query.completion for owner, kind, query in asked if owner == session}
    taught = [batch.support[row].completion == right[batch.kinds[row]] for row in own]
    return taught.count(False), len(own)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_a_share_of_the_examples_has_another_classes_answer(runs: Runs, share: float) -> None:
    runs.run(wrong_share=share, families={"label": 1.0})
    counts = [wrong(b, session) for b in runs.batches for session in range(b.count)]
    assert [found for found, _ in counts] == [round(share * rows) for _, rows in counts]
    found, rows = (sum(column) for column in zip(*counts, strict=True))
    assert found / rows == pytest.approx(share, abs=0.1)


def shown(query: Example, example: Example) -> bool:
    """Whether the query's prompt has the example, question and answer; the first token is its."""
    turn = (*example.prompt[1:], *example.header, *example.completion)
    places = range(len(query.prompt) - len(turn) + 1)
    return any(tuple(query.prompt[i : i + len(turn)]) == turn for i in places)


def test_the_in_context_control_sees_the_examples(runs: Runs) -> None:
    """From the first on, and as many as fit before each of its task's queries."""
    room = RECIPE["model"]["context_tokens"]
    runs.run(algorithm="in-context")
    for batch in runs.batches:
        for session in range(batch.count):
            pairs = zip(batch.query, batch.query_sessions, strict=True)
            queries = [query for query, owner in pairs if owner == session]
            owners = zip(batch.support, batch.support_sessions, strict=True)
            support = [example for example, owner in owners if owner == session]
            found = {tuple(shown(query, example) for example in support) for query in queries}
            assert len(found) == 1
            (seen,) = found
            longest = max(example.tokens for example in support)
            assert seen[0]
            assert all(seen) or room - longest < max(q.tokens for q in queries) <= room
    runs.run(algorithm="multitask")
    assert not any(shown(query, b.support[0]) for b in runs.batches for query in b.query)


def test_what_classes_cost_decides_what_is_drawn(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    hard = {"selection": "difficulty", "families": {"label": 1.0}}
    runs.run(**hard)
    drawn = [batch.kinds for batch in runs.batches]
    checkpoint = torch.load(runs.folder / "maml" / "checkpoint.pt", weights_only=True)
    losses = checkpoint["draws"]["difficulty"]["losses"]
    assert losses.keys() == {kind for batch in runs.batches for kind in batch.query_kinds}
    note, costly = Difficulty.note, runs.batches[0].query_kinds[0]

    def told(hard: Difficulty, kinds: Sequence[str], losses: Iterable[float]) -> None:
        note(hard, kinds, [50.0 if kind == costly else 0.5 for kind in kinds])

    monkeypatch.setattr(Difficulty, "note", told)
    runs.run(**hard)
    assert runs.batches[0].kinds == drawn[0], "nothing is known yet"
    assert [batch.kinds for batch in runs.batches] != drawn


def test_batches_that_agree_weigh_more(runs: Runs) -> None:
    found = runs.run(**UNCLIPPED, batches=2, selection="agreement")
    gradients = torch.stack(runs.apart)
    mean = gradients.mean(0)
    assert not close(gradients[0], gradients[1])
    products = gradients @ mean
    assert close(found, products / products.abs().sum() @ gradients)
    assert not close(found, mean)
    assert close(runs.run(**UNCLIPPED, batches=2), mean)


def test_locality_is_in_the_gradient_by_its_weight(runs: Runs) -> None:
    """The loss is linear in it: the gradient moves twice as far with twice the weight."""
    far = {"first_step_size": 10.0, "clip": 100.0}
    without, with_it, twice = (
        runs.run(far, **UNCLIPPED, locality_weight=weight) for weight in (0.0, 1.0, 2.0)
    )
    assert not close(with_it, without)
    assert close(twice - without, 2 * (with_it - without))
