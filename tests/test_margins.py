"""What a gate's margin leaves to a shop, as `python -m benchmarks.margins` counts it."""

from __future__ import annotations

import torch

from adapters.artifact import load_served
from benchmarks.margins import MARGINS, shares
from benchmarks.service_bot import Shop
from meta_training.learner import Learner
from server.settings import MODELS

TAUGHT = [
    ("Do you ship to Norway?", "Yes, to every country in Europe."),
    ("can you deliver abroad", "Yes, to every country in Europe."),
    ("How do I return a mug?", "Send it back within thirty days."),
    ("i want to give my teapot back", "Send it back within thirty days."),
]
ASKED = [
    ("Do you ship to Norway?", "Yes, to every country in Europe."),
    ("do you deliver to Sweden", "Yes, to every country in Europe."),
    ("Can I return a teapot?", "Send it back within thirty days."),
]
OTHERS: dict[str, list[str]] = {"Who wrote this song?": [], "Do you ship on Sundays?": []}


@torch.no_grad()
def test_a_larger_margin_opens_for_less_of_both() -> None:
    artifact = load_served(MODELS / "innerloop-tiny", "cpu", "none")
    shop = Shop("mugs", TAUGHT, {"other words": ASKED}, OTHERS)
    by_margin = shares(Learner.from_artifact(artifact), shop)
    found = [by_margin[margin] for margin in MARGINS]
    assert found[0] == (1.0, 0.5), "all that is asked, and the question about Sundays"
    for less, more in zip(found[1:], found, strict=False):
        assert less[0] <= more[0]
        assert less[1] <= more[1]
    assert found[-1][0] >= 1 / 3, "what was taught itself"
    assert found[-1] != found[0]
