"""The gate's threshold keeps taught questions in, and a shop's other questions out."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from meta_training import gating
from meta_training.evaluation.cells import Cell, TaskDrawer
from meta_training.gating import MEMORY_TASKS, best_threshold, calibrate_gate, memory_tasks
from meta_training.tasks.episodes import unrelated_questions
from meta_training.tasks.families import Families
from meta_training.tasks.sources import DataError, Intent


def drawer(count: int) -> TaskDrawer:
    """Tasks about so many validation intents of ten questions each."""
    intents = [
        Intent("own", "own", f"class {i}", tuple(f"text {i} {j}" for j in range(10)))
        for i in range(count)
    ]
    words = [f"w{i}" for i in range(60)]
    return TaskDrawer(Families(intents, [], [], words, []), unrelated_questions(intents, []), 0)


@pytest.mark.parametrize(("count", "ways"), [(30, 10), (11, 10), (10, 9), (6, 5), (3, 2)])
def test_memory_is_tried_on_as_many_validation_classes_as_there_are(count: int, ways: int) -> None:
    """One is left for the questions that a task leaves alone."""
    tasks = memory_tasks(drawer(count), Cell("label", 10, 5))
    assert len(tasks) == MEMORY_TASKS
    assert {len(task.episode.choices) for task in tasks} == {ways}


def test_two_validation_classes_say_nothing_of_memory() -> None:
    with pytest.raises(DataError):
        memory_tasks(drawer(2), Cell("label", 10, 5))


def test_a_threshold_between_what_can_be_told_apart() -> None:
    near, far = torch.tensor([0.7, 0.8, 0.9]), torch.tensor([0.1, 0.2, 0.6])
    threshold = best_threshold(near, far)
    assert 0.6 < threshold <= 0.7


def test_a_question_at_the_threshold_opens_the_gate() -> None:
    assert best_threshold(torch.tensor([0.5]), torch.tensor([0.499])) == pytest.approx(0.5)


def calibrated(domains: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[float, float]:
    """Threshold and growth where validation intents, all somewhat alike, have these domains."""

    def seen(text: str) -> Tensor:
        kind, number, wording = text.split()
        own = torch.zeros(2 + len(domains))
        if kind == "asked":
            own[0], own[2 + int(number)] = 0.7, 1.0
        else:
            own[1] = 1.0
        noise = torch.randn(len(own), generator=torch.Generator().manual_seed(int(wording)))
        return normalize(own + 0.15 * noise, dim=-1)

    monkeypatch.setattr(
        gating, "_vectors", lambda learner, gate, texts: torch.stack([seen(t) for t in texts])
    )
    monkeypatch.setattr(gating, "EPISODES", 10)
    asked = [
        Intent("own", domain, f"class {i}", tuple(f"asked {i} {10 * i + j}" for j in range(10)))
        for i, domain in enumerate(domains)
    ]
    trained = Intent("own", "trained", "class", tuple(f"trained 0 {900 + j}" for j in range(50)))
    corpus = SimpleNamespace(validation_intents=asked, train_intents=[trained], train_personas=[])
    gate = calibrate_gate(SimpleNamespace(summary_layer=1), corpus, None, 0)  # type: ignore[arg-type]
    return gate.threshold, gate.growth


def test_a_gate_is_calibrated_beside_the_questions_of_the_same_domain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are nearer to what was taught than questions of training are, which stand in for them
    where there are none."""
    shop, alone = (
        calibrated(domains, monkeypatch)
        for domains in (["shop"] * 7, [f"domain {i}" for i in range(7)])
    )
    assert shop[0] > alone[0] + 0.05
    assert min(shop[1], alone[1]) >= 0
