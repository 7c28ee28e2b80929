"""Fast adapters without gradients: a query gets the answer of the support it lies near to.

Three ways to compare embeddings, of any encoder or of a causal LM's hidden states. Knows vectors
only: N support rows with labels 0..C-1, Q queries, width D.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot, relu


class Metric(Protocol):
    """A way to classify by a support set, and the loss that trains an encoder for it."""

    def scores(self, support: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
        """(Q, C) of the classes for each query; the largest wins.

        Args:
            support: (N, D).
            labels: (N,) every class of 0..C-1 at least once.
            queries: (Q, D).
        """
        ...

    def loss(self, support: Tensor, labels: Tensor, queries: Tensor, answers: Tensor) -> Tensor:
        """What one episode costs, a scalar; ``answers`` (Q,) are the queries' labels."""
        ...


@dataclass(frozen=True)
class Prototypical:
    """Nearest class mean (Snell et al. 2017, arXiv 1703.05175, eq. 1 and 2).

    Squared Euclidean distances, as the paper recommends.
    """

    def scores(self, support: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
        """Minus the squared distances to the class means."""
        member = one_hot(labels).to(support.dtype)  # (N, C)
        means = member.T @ support / member.sum(0).unsqueeze(1)  # (C, D)
        return -(queries.unsqueeze(1) - means.unsqueeze(0)).square().sum(-1)

    def loss(self, support: Tensor, labels: Tensor, queries: Tensor, answers: Tensor) -> Tensor:
        """Cross-entropy of the softmax over the scores."""
        return cross_entropy(self.scores(support, labels, queries), answers)


@dataclass(frozen=True)
class Matching:
    """Attention over the support (Vinyals et al. 2016, arXiv 1606.04080, eq. 1 and section 2.1.1).

    The softmax of cosines, without full-context embeddings. ``sharpness`` multiplies the cosines:
    1 is the paper's; unit vectors of a small encoder need more to tell many examples apart.
    """

    sharpness: float = 1.0

    def attention(self, support: Tensor, queries: Tensor) -> Tensor:
        """(Q, N) adding up to 1 over the support."""
        return (self.sharpness * normalize(queries, dim=-1) @ normalize(support, dim=-1).T).softmax(
            -1
        )

    def scores(self, support: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
        """Log-probabilities: of each class, the sum of its examples' attention."""
        shares = self.attention(support, queries) @ one_hot(labels).to(support.dtype)
        return shares.clamp(min=torch.finfo(shares.dtype).tiny).log()

    def loss(self, support: Tensor, labels: Tensor, queries: Tensor, answers: Tensor) -> Tensor:
        """Cross-entropy (eq. 2)."""
        return -self.scores(support, labels, queries).gather(1, answers.unsqueeze(1)).mean()


@dataclass(frozen=True)
class Siamese:
    """Pairs of one class near, others at least a ``margin`` apart; a query's nearest neighbour.

    The contrastive loss is Hadsell, Chopra and LeCun 2006 ("Dimensionality Reduction by Learning an
    Invariant Mapping", eq. 4); one-shot classification by it: Koch et al. 2015 ("Siamese Neural
    Networks for One-shot Image Recognition"), who learn a weighted distance instead. Embeddings
    are made unit vectors, so that a margin means the same for every encoder.
    """

    margin: float = 1.0

    def scores(self, support: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
        """Minus the distance to the nearest example of each class."""
        distances = _distances(queries, support)  # (Q, N)
        other = one_hot(labels).T.bool().logical_not()  # (C, N)
        return -distances.unsqueeze(1).masked_fill(other.unsqueeze(0), torch.inf).amin(-1)

    def loss(self, support: Tensor, labels: Tensor, queries: Tensor, answers: Tensor) -> Tensor:
        """Mean over all pairs of a query and an example."""
        distances = _distances(queries, support)
        same = answers.unsqueeze(1) == labels.unsqueeze(0)
        apart = relu(self.margin - distances).square()
        return 0.5 * torch.where(same, distances.square(), apart).mean()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """(A, B) distances of unit vectors; smooth where two are the same."""
    cosines = normalize(a, dim=-1) @ normalize(b, dim=-1).T
    return (2 - 2 * cosines).clamp(min=1e-12).sqrt()
