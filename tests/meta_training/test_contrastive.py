"""The contrastive loss against the same sum written out in plain Python."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meta_training.algorithms.maml import contrastive_loss


def slow(vectors: list[list[float]], kinds: list[str], temperature: float) -> float:
    """Khosla et al. 2020, eq. 2, term by term."""

    def cosine(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.hypot(*a) / math.hypot(*b)

    rows = []
    for i, vector in enumerate(vectors):
        partners = [j for j, kind in enumerate(kinds) if j != i and kind == kinds[i]]
        if not partners:
            continue
        everyone = sum(
            math.exp(cosine(vector, other) / temperature)
            for j, other in enumerate(vectors)
            if j != i
        )
        rows.append(
            -sum(
                math.log(math.exp(cosine(vector, vectors[j]) / temperature) / everyone)
                for j in partners
            )
            / len(partners)
        )
    return sum(rows) / len(rows)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kinds=st.lists(st.sampled_from("abcd"), min_size=2, max_size=9).filter(
        lambda kinds: len(set(kinds)) < len(kinds)
    ),
    temperature=st.sampled_from([0.1, 0.5, 1.0]),
)
def test_it_is_the_sum_written_out(seed: int, kinds: list[str], temperature: float) -> None:
    rng = random.Random(seed)
    vectors = [[rng.gauss(0, 1) for _ in range(4)] for _ in kinds]
    found = contrastive_loss(torch.tensor(vectors, dtype=torch.float64), kinds, temperature)
    assert found.item() == pytest.approx(slow(vectors, kinds, temperature), rel=1e-9)


def test_rows_without_a_partner_only_repel() -> None:
    pair = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    near, far = torch.tensor([[0.8, 0.6]]), torch.tensor([[-1.0, -0.5]])
    losses = [
        contrastive_loss(torch.cat([pair, alone]), ["a", "a", "b"]).item() for alone in (near, far)
    ]
    assert losses[0] > losses[1]


def test_only_directions_count() -> None:
    vectors = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lengths = torch.tensor([[1.0], [9.0], [0.1], [3.0], [2.0]], dtype=torch.float64)
    kinds = ["a", "b", "a", "b", "c"]
    assert contrastive_loss(vectors, kinds).item() == pytest.approx(
        contrastive_loss(vectors * lengths, kinds).item(), rel=1e-9
    )
