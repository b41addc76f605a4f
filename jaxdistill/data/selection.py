"""Transfer sets: a share of the training records, chosen before a run by a reproducible rule.

A selection is a pure function of the run's seed, the number of records and the hardness of each record, so there is
no state to save. Hardness is computed from cached teacher outputs (`jaxdistill cache`).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxdistill.core import hardness
from jaxdistill.core.registry import selections
from jaxdistill.data.stream import SELECTION, random_words

Measure = Literal["entropy", "margin", "disagreement", "loss"]


class Selection(NamedTuple):
    """A rule that chooses the records to learn from.

    share: fraction of all records
    order: `(seed, records, hard) -> [records]`, record numbers by priority; `hard` is the hardness `[records]`, or
        None without caches
    caches: folders of cached teacher outputs for these records
    by: the measure of hardness
    """

    share: float
    order: Callable[[int, int, np.ndarray | None], np.ndarray]
    caches: tuple[str, ...] = ()
    by: Measure = "entropy"

    def count(self, records: int) -> int:
        """Return how many of `records` records are chosen: the share, rounded, and at least 1."""
        return max(1, round(self.share * records))

    def chosen(self, seed: int, records: int, hard: np.ndarray | None) -> np.ndarray:
        """Return the numbers of the chosen records, rising."""
        return np.sort(self.order(seed, records, hard)[: self.count(records)])


@selections.register
def random(share: float) -> Selection:
    """Choose records at random. For one seed, a smaller share is a subset of every larger one.

    Args:
        share: of the records, above 0 and at most 1.
    """
    order = lambda seed, records, hard: np.argsort(random_words(seed, 0, SELECTION, records), kind="stable")
    return Selection(_checked_share(share), order)


@selections.register
def hardest(share: float, cache: str | tuple[str, ...], by: Measure = "entropy") -> Selection:
    """Choose the hardest records; of equally hard ones, the first.

    Wrong labels and damaged records are hard, too. On digits, the hardest tenth taught less than a random tenth
    (experiments/data).

    Args:
        share: of the records, above 0 and at most 1.
        cache: one or several folders that `jaxdistill cache` wrote for the same data without random augmentation.
            Hardness is computed from the mean of their probabilities. The cache of a student, such as the student of
            an earlier run, gives the hardness for that student.
        by: entropy, margin (a smaller margin is harder), disagreement of several caches, or the loss on the labels.

    Raises:
        ValueError: `share` is out of range; no cache, or only one for `disagreement`.
    """
    return _ranked(share, cache, by, -1)


@selections.register
def easiest(share: float, cache: str | tuple[str, ...], by: Measure = "entropy") -> Selection:
    """Choose the easiest records; arguments and errors as in `hardest`."""
    return _ranked(share, cache, by, 1)


def _ranked(share: float, cache: str | tuple[str, ...], by: Measure, sign: int) -> Selection:
    caches = (cache,) if isinstance(cache, str) else cache
    if not caches or not all(caches):
        raise ValueError("cache is empty; give the folder that jaxdistill cache wrote.")
    if by == "disagreement" and len(caches) < 2:
        raise ValueError("by='disagreement' needs the caches of two teachers or more.")
    order = lambda seed, records, hard: np.argsort(sign * np.asarray(hard), kind="stable")
    return Selection(_checked_share(share), order, caches, by)


def _checked_share(share: float) -> float:
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1; got {share}.")
    return share


def record_hardness(by: Measure, logits: np.ndarray, labels: np.ndarray | None, mask: np.ndarray | None) -> np.ndarray:
    """Compute the hardness of records, `[records]` in float64; for sequences, the mean over unmasked tokens.

    Args:
        by: see `hardest`.
        logits: of all teachers, `[teachers, records, classes]`, or `[teachers, records, length, classes]`.
        labels: `[records]` or `[records, length]`, for `loss`; below 0 if hidden.
        mask: `[records, length]`, of tokens.
    """
    logits = logits.astype(np.float64)
    e = np.exp(logits - logits.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    measures: dict[str, Callable[[], Any]] = {
        "entropy": lambda: hardness.entropy(p.mean(0)),
        "margin": lambda: hardness.margin(p.mean(0)),
        "disagreement": lambda: hardness.disagreement(p),
        "loss": lambda: _loss(p.mean(0), labels),
    }
    values = measures[by]()
    if values.ndim == 1:
        return values
    unmasked = np.ones(values.shape, bool) if mask is None else mask != 0
    return np.where(unmasked, values, 0).sum(1) / np.maximum(unmasked.sum(1), 1)


def _loss(p: np.ndarray, labels: Any) -> np.ndarray:
    label_p = np.take_along_axis(p, np.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    # For a probability of 0 the loss would be infinite, and so would every mean: use the smallest float64 instead.
    return np.where(labels < 0, np.nan, -np.log(np.maximum(label_p, np.finfo(np.float64).tiny)))
