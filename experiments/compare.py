"""What two arms of a study differ by, seed by seed."""

from collections.abc import Sequence
from typing import NamedTuple

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


def paired(one: Sequence[float], other: Sequence[float]) -> Paired:
    """`one - other`, of two arms whose entries belong to the same seeds; an interval needs two seeds or more."""
    gain = np.subtract(one, other)
    if len(gain) < 2 or not gain.std():
        return Paired(float(gain.mean()), *(float(gain.mean()),) * 2, float("nan"), gain.tolist())
    low, high = stats.t.interval(0.95, len(gain) - 1, gain.mean(), stats.sem(gain))
    return Paired(float(gain.mean()), float(low), float(high), float(stats.ttest_1samp(gain, 0).pvalue), gain.tolist())


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation over seeds, as a table shows them."""
    more = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{more}"
