"""MAML, exact and first-order, and from the one to the other.

Finn et al. 2017, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", arXiv
1703.03400, algorithm 1; first-order: section 5.2. Starting with first order and going over to exact
after some outer steps is MAML++'s derivative-order annealing (Antoniou et al. 2019, arXiv
1810.09502, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from meta_training.algorithms.adjoint import adjoint_backward
from meta_training.algorithms.episodes import Episodes, Judged, add_aside
from meta_training.algorithms.unrolled import unrolled


@dataclass(frozen=True)
class Maml:
    """The queries' loss after the last inner step.

    ``first_order_share``: of the outer steps, from the first on, that take gradients as constants;
    1 is first-order MAML. ``flat``: the exact gradient by the adjoint loop.
    """

    first_order_share: float = 0.0
    flat: bool = False
    takes_steps: bool = True

    def weights(self, steps: int, progress: float) -> Sequence[float]:
        """Of the judgement after each of ``steps`` inner steps."""
        return [0.0] * (steps - 1) + [1.0] if steps else []

    def backward(
        self, episodes: Episodes, steps: int, progress: float, aside: Tensor | None = None
    ) -> Judged:
        """As of ``Algorithm``."""
        weights = self.weights(steps, progress)
        first_order = progress < self.first_order_share or self.first_order_share == 1
        if self.flat and not first_order:
            return adjoint_backward(episodes, weights, aside)
        judged = unrolled(episodes, weights, second_order=not first_order)
        add_aside(judged.loss, aside).backward()
        return judged
