"""What an arm of a study comes to over its seeds, and what two arms differ by, seed by seed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats


class Paired(NamedTuple):
    """The mean difference of two arms that share their seeds, its 95 % interval (Student's t), and each difference."""

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


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a mean over seeds (Student's t); of one seed, or of equal ones, a point."""
    mean = float(np.mean(values))
    if len(values) < 2 or not np.std(values):
        return mean, mean
    low, high = stats.t.interval(0.95, len(values) - 1, mean, stats.sem(values))
    return float(low), float(high)


def paired(one: Sequence[float], other: Sequence[float]) -> Paired:
    """`one - other`, of two arms whose entries belong to the same seeds; an interval needs two seeds or more."""
    gain: Any = np.subtract(one, other)
    told = len(gain) > 1 and gain.std()
    p = float(stats.ttest_1samp(gain, 0).pvalue) if told else float("nan")
    return Paired(float(gain.mean()), *interval(gain), p, gain.tolist())


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation over seeds, as a table shows them."""
    more = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{more}"


def ranged(values: Sequence[float], digits: int = 1) -> str:
    """Mean over seeds, and its 95 % interval."""
    low, high = interval(values)
    return f"{np.mean(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
