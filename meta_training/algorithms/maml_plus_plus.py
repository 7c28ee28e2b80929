"""MAML++: the queries' loss after every inner step, not only after the last.

Antoniou et al. 2019, "How to train your MAML", arXiv 1810.09502, eq. 4 (multi-step loss). Its step
sizes per layer and step (LSLR) are what every inner rule here has, its cosine schedule every outer
loop, and its derivative-order annealing is ``Maml.first_order_share``. The weights are annealed as
in the authors' code: equal at first, then the earlier ones fall linearly to 0.03 / K. Left out:
per-step batch normalisation, of which our models have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meta_training.algorithms.maml import Maml

LEAST = 0.03  # K times the least weight of an earlier step


@dataclass(frozen=True)
class MamlPlusPlus(Maml):
    """``multi_step_share``: of the outer steps, until the last inner step has nearly all weight."""

    multi_step_share: float = 0.5

    def weights(self, steps: int, progress: float) -> Sequence[float]:
        """They add up to 1."""
        if not steps:
            return []
        done = 1.0 if self.multi_step_share == 0 else min(1.0, progress / self.multi_step_share)
        early = max(1 - done, LEAST) / steps
        return [early] * (steps - 1) + [1 - (steps - 1) * early]
