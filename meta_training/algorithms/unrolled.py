"""The outer loss with the graph of every inner step kept: simple, and K steps' memory.

Exact MAML differentiates through the steps' gradients too (Finn et al. 2017, arXiv 1703.03400, eq.
1 and algorithm 1), first-order MAML takes them as constants (section 5.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from adapters.inner_loop import descend
from meta_training.algorithms.episodes import Episodes, Judged


def unrolled(episodes: Episodes, weights: Sequence[float], second_order: bool = True) -> Judged:
    """Take ``len(weights)`` inner steps and judge, with the graph to all that is learned.

    ``weights``: of the judgement after each step; where it is 0, nobody judges. Without steps the
    start is judged. The figures are those of the last judgement.
    """
    tensors: Mapping[str, Tensor] = episodes.start
    if not weights:
        return episodes.judge(tensors)
    rule, losses = episodes.rule, []
    for step, weight in enumerate(weights):
        sizes = rule.sizes_at(step)
        tensors, _ = descend(episodes.support_losses, tensors, sizes, rule.clip, True, second_order)
        if weight:
            judged = episodes.judge(tensors)
            losses.append(judged.loss if weight == 1 else weight * judged.loss)
    return replace(judged, loss=sum(losses[1:], losses[0]))
