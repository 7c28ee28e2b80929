"""Metric heads against their papers' formulas, computed one number at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from meta_training.algorithms.metric import Matching, Metric, Prototypical, Siamese

SUPPORT = torch.tensor([[1.0, 0.0], [0.8, 0.3], [0.0, 1.0], [-0.2, 0.9], [0.1, 1.1]])
LABELS = torch.tensor([0, 0, 1, 1, 1])
QUERIES = torch.tensor([[0.9, 0.2], [-0.1, 2.0], [0.6, 0.5]])
ANSWERS = torch.tensor([0, 1, 1])
METRICS = [Prototypical(), Matching(), Matching(10.0), Siamese()]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


def test_prototypical_by_hand() -> None:
    means = [SUPPORT[c == LABELS].mean(0) for c in (0, 1)]
    expected = [[-float((q - m).square().sum()) for m in means] for q in QUERIES]
    found = Prototypical().scores(SUPPORT, LABELS, QUERIES)
    torch.testing.assert_close(found, torch.tensor(expected))
    loss = sum(
        math.log(sum(map(math.exp, row))) - row[int(answer)]
        for row, answer in zip(expected, ANSWERS, strict=True)
    )
    found_loss = Prototypical().loss(SUPPORT, LABELS, QUERIES, ANSWERS)
    assert float(found_loss) == pytest.approx(loss / 3, rel=1e-5)


@pytest.mark.parametrize("sharpness", [1.0, 10.0])
def test_matching_by_hand(sharpness: float) -> None:
    expected = []
    for query in QUERIES:
        weights = [math.exp(sharpness * cosine(query, example)) for example in SUPPORT]
        shares = [weight / sum(weights) for weight in weights]
        expected.append(
            [sum(s for s, y in zip(shares, LABELS, strict=True) if y == c) for c in (0, 1)]
        )
    found = Matching(sharpness).scores(SUPPORT, LABELS, QUERIES)
    torch.testing.assert_close(found.exp(), torch.tensor(expected))
    loss = -sum(math.log(row[int(a)]) for row, a in zip(expected, ANSWERS, strict=True)) / 3
    assert float(Matching(sharpness).loss(SUPPORT, LABELS, QUERIES, ANSWERS)) == pytest.approx(
        loss, rel=1e-5
    )


@pytest.mark.parametrize("margin", [0.5, 1.0, 2.0])
def test_siamese_by_hand(margin: float) -> None:
    total, nearest = 0.0, torch.full((3, 2), -math.inf)
    for i, query in enumerate(QUERIES):
        for j, example in enumerate(SUPPORT):
            distance = float((query / query.norm() - example / example.norm()).norm())
            label = int(LABELS[j])
            nearest[i, label] = max(float(nearest[i, label]), -distance)
            same = label == int(ANSWERS[i])
            total += 0.5 * (distance**2 if same else max(0.0, margin - distance) ** 2)
    metric = Siamese(margin)
    torch.testing.assert_close(metric.scores(SUPPORT, LABELS, QUERIES), nearest, atol=1e-5, rtol=0)
    assert float(metric.loss(SUPPORT, LABELS, QUERIES, ANSWERS)) == pytest.approx(
        total / 15, rel=1e-5
    )


@pytest.mark.parametrize("metric", METRICS, ids=repr)
def test_the_order_of_the_support_does_not_matter(metric: Metric) -> None:
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(
        metric.scores(SUPPORT[order], LABELS[order], QUERIES),
        metric.scores(SUPPORT, LABELS, QUERIES),
    )


@pytest.mark.parametrize("metric", METRICS, ids=repr)
def test_an_encoder_learns_from_the_loss(metric: Metric) -> None:
    """Two of six inputs tell the classes apart; untrained, the other four drown them."""
    generator = torch.Generator().manual_seed(0)
    encoder = torch.nn.Linear(6, 3, bias=False)
    with torch.no_grad():
        encoder.weight.copy_(torch.randn(3, 6, generator=generator) / 6**0.5)

    def episode() -> tuple[Tensor, Tensor]:
        labels = torch.arange(3).repeat(4)
        means = torch.randn(3, 2, generator=generator) * 2
        noise = torch.randn(12, 4, generator=generator) * 2
        return torch.cat(
            [means[labels] + 0.2 * torch.randn(12, 2, generator=generator), noise], 1
        ), labels

    def accuracy() -> float:
        right = []
        for _ in range(60):
            inputs, labels = episode()
            scores = metric.scores(encoder(inputs[:6]), labels[:6], encoder(inputs[6:]))
            right.append((scores.argmax(-1) == labels[6:]).float().mean())
        return float(torch.stack(right).mean())

    before = accuracy()
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.02)
    for _ in range(150):
        inputs, labels = episode()
        optimizer.zero_grad()
        metric.loss(encoder(inputs[:6]), labels[:6], encoder(inputs[6:]), labels[6:]).backward()
        optimizer.step()
    assert accuracy() > before + 0.15


def test_equal_vectors_have_a_gradient() -> None:
    same = torch.ones(2, 3, requires_grad=True)
    Siamese().loss(same, torch.tensor([0, 1]), same, torch.tensor([0, 1])).backward()
    assert same.grad is not None
    assert bool(same.grad.isfinite().all())
