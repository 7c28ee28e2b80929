"""Episodes whose losses are quadratic, so that every outer gradient can be written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from adapters.config import InnerRule
from adapters.state import Tensors, repeat
from meta_training.algorithms.episodes import Cut, Embedded, Judged

NO_CLIP = 1e9


@dataclass(frozen=True)
class Quadratic:
    """S episodes over one vector "x" of D numbers.

    Support costs (x - a)^T H (x - a) / 2 and queries (x - b)^T G (x - b) / 2 + c^T x, of each
    episode; the outer loss is the mean over episodes. H and G (S, D, D), a and b (S, D). ``c`` (D,)
    is learned and stands for a base, ``shift`` (D,) for a prompt computed from it.
    """

    start: Tensors
    rule: InnerRule
    curve: Tensor
    goal: Tensor
    query_curve: Tensor
    query_goal: Tensor
    base: Tensor
    shift: Tensor

    def support_losses(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return _cost(tensors["x"], self.curve, self.goal + self.shift)

    def query_losses(self, tensors: Mapping[str, Tensor]) -> Tensor:
        linear = tensors["x"] @ self.base
        return _cost(tensors["x"], self.query_curve, self.query_goal) + linear

    def judge(self, tensors: Mapping[str, Tensor] | None, support_too: bool = False) -> Judged:
        assert tensors is not None
        loss = self.query_losses(tensors).mean()
        if support_too:
            loss = (loss + self.support_losses(tensors).mean()) / 2
        return Judged(loss, {"query": loss.item()})

    def embedded(self) -> list[Embedded]:
        raise NotImplementedError

    def cut(self, cut: Cut) -> Self:
        return replace(self, rule=cut.rule(self.rule), shift=cut.leaf(self.shift))


def _cost(x: Tensor, curve: Tensor, goal: Tensor) -> Tensor:
    away = x - goal  # (S, D)
    return 0.5 * torch.einsum("si,sij,sj->s", away, curve, away)


@dataclass(frozen=True)
class Problem:
    """What is learned of quadratic episodes: leaves, float64."""

    x: Tensor  # (D,)
    sizes: Tensor  # (K,)
    factors: Tensor  # (D,)
    base: Tensor  # (D,)
    curve: Tensor
    goal: Tensor
    query_curve: Tensor
    query_goal: Tensor
    clip: float = NO_CLIP

    @property
    def learned(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("x", "sizes", "factors", "base")}

    def episodes(self) -> Quadratic:
        rule = InnerRule(
            len(self.sizes),
            {"x": self.sizes * 1},
            self.clip,
            factors={"x": self.factors * 1},
        )
        return Quadratic(
            repeat({"x": self.x}, len(self.goal)),
            rule,
            self.curve,
            self.goal,
            self.query_curve,
            self.query_goal,
            self.base,
            0.3 * self.base,
        )


def make_problem(
    steps: int = 3, sessions: int = 2, width: int = 4, clip: float = NO_CLIP
) -> Problem:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def curves() -> Tensor:
        half = draw(sessions, width, width)
        return half @ half.transpose(1, 2) / width + 0.1 * torch.eye(width, dtype=torch.float64)

    return Problem(
        draw(width).requires_grad_(),
        torch.linspace(0.1, 0.3, steps, dtype=torch.float64).requires_grad_(),
        (1 + 0.2 * draw(width)).requires_grad_(),
        draw(width).requires_grad_(),
        curves(),
        draw(sessions, width),
        curves(),
        draw(sessions, width),
        clip,
    )
