"""Encoders and plain modules learn the same on a device that is not the CPU, pretended."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from elsewhere import elsewhere
from test_classifier import episodes, make_bert, make_lstm
from torch.testing import assert_close

from adapters.device import CPU
from meta_training.classifier import Classifier
from meta_training.classify import adapt_classifier, classify, train_classifier
from meta_training.recipe_parts import OuterPart
from meta_training.tasks.classes import ClassEpisodes

__all__ = ["episodes"]  # a fixture


@pytest.mark.parametrize("make", [make_lstm, make_bert])
@pytest.mark.parametrize("algorithm", ["maml", "maml++", "reptile", "multitask"])
def test_a_classifier_learns_the_same_elsewhere(
    make: Callable[[], Classifier],
    algorithm: str,
    episodes: ClassEpisodes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def learn(device: torch.device) -> dict[str, Any]:
        learner = make().to(device)
        part = OuterPart.model_validate({"algorithm": algorithm, "steps": 2, "warmup_steps": 1})
        figures = train_classifier(learner, episodes.draw, part)
        support, query = episodes.draw(random.Random(5))
        tensors, judged = adapt_classifier(learner, support, query, 2)
        answers = classify(learner, tensors, query).tolist()
        learned = learner.state_dict().items()
        # A key's bias changes nothing, so that its gradient is rounding, which Adam makes large.
        weights = {name: tensor.cpu() for name, tensor in learned if "key.bias" not in name}
        return {"figures": figures, "judged": judged.figures, "answers": answers} | weights

    here = learn(CPU)
    with elsewhere(monkeypatch) as device:
        assert_close(learn(device), here, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("algorithm", ["prototypical", "matching", "siamese"])
def test_a_metric_trains_an_encoder_the_same_elsewhere(
    algorithm: str, episodes: ClassEpisodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = OuterPart.model_validate({"algorithm": algorithm, "steps": 2, "warmup_steps": 1})
    here = train_classifier(make_lstm(), episodes.draw, part)
    with elsewhere(monkeypatch) as device:
        away = train_classifier(make_lstm().to(device), episodes.draw, part)
    assert_close(away, here, rtol=1e-3, atol=1e-4)
