"""Means over tasks with 95% intervals, of one method and of the differences between two."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Final

import numpy as np

RESAMPLES = 4999
NORMAL: Final = 1.959963984540054
"""97.5% point of the normal distribution."""
STUDENT: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5% points of Student's t with 1, 2, … degrees of freedom."""


def student(freedom: int) -> float:
    """97.5% point of Student's t with ``freedom`` degrees of freedom, to 1e-3 and better.

    Above the table Fisher's expansion about the normal point (Abramowitz and Stegun 1964, 26.7.5).
    """
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    x, over = NORMAL, 1 / freedom
    first = (x**3 + x) / 4
    second = (5 * x**5 + 16 * x**3 + 3 * x) / 96
    third = (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384
    return x + over * (first + over * (second + over * third))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean over tasks and the half width of its 95% interval, by Student's t; NaN for one alone."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, student(len(values) - 1) * math.sqrt(variance / len(values))


def over_runs(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over a few runs, their standard deviation, half the width of the mean's 95% interval.

    By Student's t. NaN for one run alone.
    """
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return mean, math.nan, math.nan
    deviation = statistics.stdev(values)
    return mean, deviation, student(count - 1) * deviation / math.sqrt(count)


def paired_bootstrap(differences: Sequence[float]) -> tuple[float, float]:
    """Ends of the 95% interval of the mean of differences, one a task; the same at every call.

    Percentiles of the means of tasks drawn again and again with replacement (Efron 1979), which are
    too near to each other below about ten tasks. Both are NaN for one task alone.
    """
    if len(differences) < 2:
        return math.nan, math.nan
    again = np.random.default_rng(0).choice(differences, (RESAMPLES, len(differences)))
    low, high = np.quantile(again.mean(1), (0.025, 0.975))
    return float(low), float(high)
