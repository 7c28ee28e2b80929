"""Means over tasks with 95% intervals, of one method and of the differences between two."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Final

import numpy as np

RESAMPLES = 4999
STUDENT: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5% points of Student's t with 1, 2, … degrees of freedom."""


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean over tasks and the half width of its 95% interval (normal approximation)."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, 1.96 * math.sqrt(variance / len(values))


def over_runs(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over a few runs, their standard deviation, half the width of the mean's 95% interval.

    By Student's t: a handful is too few for the normal approximation. NaN for one run alone.
    """
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return mean, math.nan, math.nan
    deviation = statistics.stdev(values)
    t = STUDENT[count - 2] if count - 2 < len(STUDENT) else 1.96
    return mean, deviation, t * deviation / math.sqrt(count)


def paired_bootstrap(differences: Sequence[float]) -> tuple[float, float]:
    """Ends of the 95% interval of the mean of differences, one a task; the same at every call.

    Percentiles of the means of tasks drawn again and again with replacement (Efron 1979). Both are
    NaN for one task alone.
    """
    if len(differences) < 2:
        return math.nan, math.nan
    again = np.random.default_rng(0).choice(differences, (RESAMPLES, len(differences)))
    low, high = np.quantile(again.mean(1), (0.025, 0.975))
    return float(low), float(high)
