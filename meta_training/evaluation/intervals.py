"""Means over tasks with 95% intervals, of one method and of the differences between two."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 4999


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean over tasks and the half width of its 95% interval (normal approximation)."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, 1.96 * math.sqrt(variance / len(values))


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
