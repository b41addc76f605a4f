"""Compute means and confidence intervals over seeds, and paired differences between two arms of a study."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats


class Paired(NamedTuple):
    """The difference of two arms with the same seeds.

    mean: mean difference
    low, high: its 95 % interval (Student's t)
    p: p-value of the paired t-test; NaN with one seed or equal differences
    differences: the difference of each seed
    """

    mean: float
    low: float
    high: float
    p: float
    differences: list[float]

    def __str__(self) -> str:
        if len(self.differences) < 2:
            return f"{self.mean:.2f} (one seed: no interval)"
        return (
            f"{self.mean:.2f}, 95 % interval {self.low:.2f} to {self.high:.2f} (paired, {len(self.differences)} seeds)"
        )


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Compute the 95 % interval of a mean over seeds (Student's t); one seed or equal values give a point."""
    mean = float(np.mean(values))
    if len(values) < 2 or not np.std(values):
        return mean, mean
    low, high = stats.t.interval(0.95, len(values) - 1, mean, stats.sem(values))
    return float(low), float(high)


def paired(one: Sequence[float], other: Sequence[float]) -> Paired:
    """Compare two arms by `one - other`; entries at the same position belong to the same seed.

    An interval needs two seeds or more.
    """
    differences: Any = np.subtract(one, other)
    testable = len(differences) > 1 and differences.std()
    p = float(stats.ttest_1samp(differences, 0).pvalue) if testable else float("nan")
    return Paired(float(differences.mean()), *interval(differences), p, differences.tolist())


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Format mean and standard deviation over seeds for a table."""
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def mean_and_interval(values: Sequence[float], digits: int = 1) -> str:
    """Format the mean over seeds and its 95 % interval."""
    low, high = interval(values)
    return f"{np.mean(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
