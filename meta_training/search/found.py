"""What a search has found: the trials with their relative scores, and which of them is best.

Knows losses and how they are compared; knows nothing about files, samplers or models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meta_training.evaluation.relative import Losses, Relative, by_cell, relative
from meta_training.search.plan import Settings
from meta_training.search.study import Drawn


@dataclass(frozen=True)
class Found:
    """A trial that has ended, or the recipe's own settings as number 0.

    ``score``: after the last judgement, None where there was none. ``curve``: the score's mean by
    outer steps.
    """

    drawn: Drawn
    score: Relative | None
    cells: Mapping[str, Relative]
    curve: Mapping[int, float]
    losses: Losses

    @property
    def number(self) -> int:
        """Its number; 0 has the recipe's own settings."""
        return self.drawn.number

    @property
    def settings(self) -> Settings:
        """The values it had."""
        return self.drawn.settings

    @property
    def state(self) -> str:
        """One of reference, complete, stopped, failed."""
        return self.drawn.state

    @property
    def steps(self) -> int:
        """Outer steps before the last judgement."""
        return max(self.curve, default=0)

    @property
    def whole(self) -> bool:
        """Whether it came to its end, so that its score can be compared."""
        return self.state in ("reference", "complete")

    def line(self) -> dict[str, Any]:
        """The same as a line of JSON."""
        return {
            "trial": self.number,
            "state": self.state,
            "settings": self.settings,
            "score": None if self.score is None else self.score.told(),
            "cells": {cell: score.told() for cell, score in self.cells.items()},
            "outer_steps": self.steps,
            "curve": {
                step: round(mean, 6) if math.isfinite(mean) else None
                for step, mean in self.curve.items()
            },
            "why": self.drawn.why,
        }


def found_of(drawn: Drawn, curve: Mapping[int, Losses], reference: Losses) -> Found:
    """A trial with its scores against ``reference``."""
    losses = curve[max(curve)] if curve else {}
    return Found(
        drawn,
        relative(losses, reference) if losses else None,
        by_cell(losses, reference) if losses else {},
        {step: relative(of, reference).mean for step, of in curve.items()},
        losses,
    )


def best_of(found: Sequence[Found]) -> Found:
    """The trial with the least score among those that came to their end; the first of equals."""
    return ranked(found)[0]


def ranked(found: Sequence[Found]) -> list[Found]:
    """Trials that came to their end, best first, then the others by number."""
    return sorted(
        found,
        key=lambda each: (
            not each.whole,
            each.score.mean if each.whole and each.score is not None else 0.0,
            each.number,
        ),
    )
