"""The exact outer gradient in the memory of one inner step, however many there are.

Forwards only the adapters after each step are kept, which are small. Backwards each step is taken
again with its graph, and a vector v is pulled through it, v <- (d theta_{k+1} / d theta_k)^T v: for
a step of size alpha that is v - alpha H v, a Hessian-vector product (Pearlmutter 1994), and the
same pass gives what the step owes to the base, the prompts and its sizes. This is reverse-mode
differentiation of gradient descent as in Maclaurin et al. 2015 (arXiv 1502.03492, algorithm 2),
with the states kept instead of recomputed backwards. It needs steps that are the same when taken
again: no dropout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from adapters.inner_loop import descend
from adapters.state import Tensors
from meta_training.algorithms.episodes import Cut, Episodes, Judged


def adjoint_backward(
    episodes: Episodes, weights: Sequence[float], aside: Tensor | None = None
) -> Judged:
    """Add the gradients of ``unrolled(episodes, weights)``, and of ``aside``, to ``.grad``."""
    cut = Cut()
    inside = episodes.cut(cut)
    rule = inside.rule
    states: list[Tensors] = [_leaves(episodes.start)]
    for step in range(len(weights)):
        sizes = {name: size.detach() for name, size in rule.sizes_at(step).items()}
        moved, _ = descend(inside.support_losses, states[-1], sizes, rule.clip)
        states.append(moved)
    if not weights:
        return _judge_start(inside, episodes.start, states[0], cut, aside)
    total, last, pulled = 0.0, Judged(torch.zeros(()), {}), dict[str, Tensor]()
    for step in reversed(range(len(weights))):
        if weights[step]:
            leaves = _leaves(states[step + 1])
            judged = inside.judge(leaves)
            (weights[step] * judged.loss).backward()
            total += weights[step] * judged.loss.item()
            last = last if last.figures else judged
            pulled = _sum(pulled, _gradients(leaves))
        before = _leaves(states[step])
        sizes = rule.sizes_at(step)
        moved, _ = descend(inside.support_losses, before, sizes, rule.clip, differentiable=True)
        torch.autograd.backward(list(moved.values()), [pulled[name] for name in moved])
        pulled = _gradients(before)
    cut.backward(episodes.start, pulled, aside)
    return replace(last, loss=torch.tensor(total, dtype=torch.float64))


def _judge_start(
    inside: Episodes, start: Tensors, leaves: Tensors, cut: Cut, aside: Tensor | None
) -> Judged:
    judged = inside.judge(leaves)
    judged.loss.backward()
    cut.backward(start, _gradients(leaves), aside)
    return replace(judged, loss=judged.loss.detach())


def _leaves(tensors: Mapping[str, Tensor]) -> Tensors:
    return {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}


def _gradients(leaves: Tensors) -> Tensors:
    return {
        name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for name, leaf in leaves.items()
    }


def _sum(a: Tensors, b: Tensors) -> Tensors:
    return {name: a[name] + tensor for name, tensor in b.items()} if a else b
