"""A model's loss on tasks relative to a reference's on the same tasks, with its interval.

Knows a learner and tasks, and how losses are compared; knows nothing about who asks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from adapters.chat import ChatEncoder
from meta_training.evaluation.adapted import adapted
from meta_training.evaluation.cells import Task
from meta_training.evaluation.intervals import paired_bootstrap
from meta_training.evaluation.judge import Scores
from meta_training.learner import Learner

FLOOR: Final = 0.01
"""Nats a token below which two losses are alike: each token has 99% already, and the ratio of two
such losses is noise that would outweigh all other tasks."""

Key = tuple[str, int]  # a cell and a task's number in it
Losses = Mapping[Key, float]  # of one model, nats a token


@dataclass(frozen=True)
class Relative:
    """S(M, D), the mean over tasks of L / L*, and the ends of its 95% interval.

    Below 1 is better than the reference. ``means`` is the mean of L over the mean of L*: tasks
    with small losses, whose ratios are large or small by little, weigh little in it. All are NaN
    where a loss is no number, and both ends for one task alone.
    """

    mean: float
    low: float
    high: float
    means: float
    tasks: int

    def told(self) -> dict[str, float | None]:
        """The same for JSON, which has no NaN."""
        return {
            name: round(value, 6) if math.isfinite(value) else None
            for name, value in vars(self).items()
        }


def relative(losses: Losses, reference: Losses) -> Relative:
    """S(M, D) on the tasks that both have.

    L / L* is of each task; a loss below ``FLOOR`` counts as ``FLOOR``, on both sides. Tasks are
    resampled in pairs: a task keeps its L and its L* (the bootstrap of ``paired_bootstrap``).

    Raises:
        ValueError: there is no task that both have.
    """
    ratios = _ratios(losses, reference)
    tasks = len(ratios)
    if not all(map(math.isfinite, ratios.values())):
        return Relative(math.nan, math.nan, math.nan, math.nan, tasks)
    low, high = paired_bootstrap(list(ratios.values()))
    own, others = (math.fsum(of[key] for key in ratios) for of in (losses, reference))
    means = own / others if others else math.nan
    return Relative(math.fsum(ratios.values()) / tasks, low, high, means, tasks)


def by_cell(losses: Losses, reference: Losses) -> dict[str, Relative]:
    """``relative`` for each cell alone, in the order of the reference's."""
    cells = dict.fromkeys(cell for cell, _ in reference)
    return {
        cell: relative({key: losses[key] for key in losses if key[0] == cell}, reference)
        for cell in cells
    }


@dataclass(frozen=True)
class Apart:
    """How far one model's S is from another's on the same tasks, with its 95% interval."""

    mean: float
    low: float
    high: float

    @property
    def sure(self) -> bool:
        """Whether the interval is on one side of 0."""
        return self.low > 0 or self.high < 0


def apart(losses: Losses, others: Losses, reference: Losses) -> Apart:
    """S of ``losses`` minus S of ``others``, on the tasks that all three have."""
    own, theirs = _ratios(losses, reference), _ratios(others, reference)
    pairs = [own[key] - theirs[key] for key in own if key in theirs]
    if not all(map(math.isfinite, pairs)):
        return Apart(math.nan, math.nan, math.nan)
    return Apart(math.fsum(pairs) / len(pairs), *paired_bootstrap(pairs))


def _ratios(losses: Losses, reference: Losses) -> dict[Key, float]:
    both = sorted(losses.keys() & reference.keys())
    if not both:
        raise ValueError("there is no task that both were judged on")
    return {key: _ratio(losses[key], reference[key]) for key in both}


def _ratio(loss: float, reference: float) -> float:
    if not (math.isfinite(loss) and math.isfinite(reference)):
        return math.nan
    return max(loss, FLOOR) / max(reference, FLOOR)


def losses_of(rows: Iterable[Mapping[str, Any]]) -> dict[Key, float]:
    """The losses in lines that ``evaluate`` kept of a ``QueryLoss``; NaN where it diverged."""
    return {
        (row["cell"], row["task"]): math.nan if row["figures"]["loss"] is None
        else float(row["figures"]["loss"])
        for row in rows
    }  # fmt: skip


class QueryLoss:
    """Loss on a task's queries after the rule's K inner steps: the adapter alone, without a gate.

    A ``Method`` of ``evaluate``, which keeps its lines.
    """

    name = "query loss"
    checkpoints: tuple[str, ...] = ("-",)

    def __init__(self, learner: Learner, counted: ChatEncoder | None = None) -> None:
        """Adapt ``learner`` by its own rule.

        ``counted``: by whose tokens an answer's length is counted, the learner's own without a
        word. Losses of models with different tokenizers can be compared if one counts for all.
        """
        self._learner = learner
        self._counted = counted

    def scores(self, tasks: Sequence[Task]) -> dict[str, Scores]:
        """``loss``: the mean over a task's queries of their nats a token."""
        found = adapted(self._learner, tasks)
        if self._counted is not None:
            answers = [turn.answer for task in tasks for turn in task.episode.query]
            counted = [len(self._counted.completion(answer)) for answer in answers]
            lengths = torch.tensor(counted, device=found.losses.device)
            found = replace(found, losses=found.losses * found.lengths / lengths)
        return {"-": [{"loss": loss} for loss in found.means()]}
