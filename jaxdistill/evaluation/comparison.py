"""Compute means and confidence intervals over seeds, and paired differences between two arms (variants) of a study."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Paired(NamedTuple):
    """The differences between two arms of a study (variants of a training run), paired by random seed.

    mean: mean difference over the seeds
    low, high: limits of the 95 % confidence interval of the mean (Student's t)
    p: p-value of the paired t-test; NaN with one seed, or if the difference is the same for all seeds
    differences: the difference for each seed
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
    """Compute the 95 % confidence interval `(low, high)` of a mean over seeds, by Student's t distribution.

    `values` has one value for each seed. With one seed, or if all values are equal, both limits are the mean.
    """
    from scipy import stats  # here, because it is slow to import

    mean = float(np.mean(values))
    if len(values) < 2 or not np.std(values):
        return mean, mean
    low, high = stats.t.interval(0.95, len(values) - 1, mean, stats.sem(values))
    return float(low), float(high)


def paired(one: Sequence[float], other: Sequence[float]) -> Paired:
    """Compute the differences `one - other` of two arms (variants of a training run), paired by seed, and their mean.

    The result includes the 95 % confidence interval of the mean and the p-value of the paired t-test. With one seed,
    both limits of the interval are the mean, and the p-value is NaN.

    Args:
        one: results of the first arm, one value for each seed.
        other: results of the second arm, for the same seeds in the same order.
    """
    from scipy import stats  # here, because it is slow to import

    differences: Any = np.subtract(one, other)
    testable = len(differences) > 1 and differences.std()
    p = float(stats.ttest_1samp(differences, 0).pvalue) if testable else float("nan")
    return Paired(float(differences.mean()), *interval(differences), p, differences.tolist())


class PairedRecords(NamedTuple):
    """The comparison of two models on the same test records.

    records: number of records
    only_one, only_other: number of records that only the first, or only the second model predicts correctly
    difference: accuracy of the first model minus that of the second, in percent points
    low, high: limits of the 95 % confidence interval of the difference (Agresti and Min)
    p: p-value of McNemar's exact test: how likely a difference as large would be if both models were equally good

    References:
        McNemar, "Note on the sampling error of the difference between correlated proportions", 1947,
        https://doi.org/10.1007/BF02295996
        Agresti & Min, "Simple improved confidence intervals for comparing matched proportions", 2005,
        https://doi.org/10.1002/sim.1781
    """

    records: int
    only_one: int
    only_other: int
    difference: float
    low: float
    high: float
    p: float


def paired_records(one: Sequence[bool] | np.ndarray, other: Sequence[bool] | np.ndarray) -> PairedRecords:
    """Compare the accuracy of two models on the same test records, with McNemar's exact test.

    Args:
        one: whether the first model predicts each record correctly, `[records]`.
        other: whether the second model predicts each record correctly, `[records]`.
    """
    from scipy import stats  # here, because it is slow to import

    one, other = np.asarray(one, bool), np.asarray(other, bool)
    records, b, c = len(one), int((one & ~other).sum()), int((other & ~one).sum())
    p = float(stats.binomtest(b, b + c).pvalue) if b + c else 1.0
    more, less, count = b + 0.5, c + 0.5, records + 2  # Agresti and Min add half a record to each of the four cells
    centre, error = (more - less) / count, np.sqrt(more + less - (more - less) ** 2 / count) / count
    reach = float(stats.norm.ppf(0.975) * error)
    low, high = 100 * (centre - reach), 100 * (centre + reach)
    return PairedRecords(records, b, c, 100 * (b - c) / records, low, high, p)


def paired_answers(one: Mapping[str, Any], other: Mapping[str, Any]) -> PairedRecords | None:
    """Compare the accuracy of two models from their predictions, with McNemar's exact test.

    Args:
        one, other: the predictions of a model as in its result.json: `predicted` and `label`, each `[records]`.

    Returns:
        The comparison, or None if the predictions are not for the same labelled test records.
    """
    if "predicted" not in one or "label" not in one or one["label"] != other.get("label"):
        return None
    return paired_records(*(np.equal(each["predicted"], each["label"]) for each in (one, other)))


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Format values over seeds as mean, plus-minus sign and standard deviation; with one seed, as the mean alone.

    Args:
        values: one value for each seed.
        digits: number of decimal places.
    """
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def mean_and_interval(values: Sequence[float], digits: int = 1) -> str:
    """Format values over seeds as their mean with its 95 % confidence interval, such as "91.3 (90.8 to 91.8)".

    Args:
        values: one value for each seed.
        digits: number of decimal places.
    """
    low, high = interval(values)
    return f"{np.mean(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
