"""Transfer sets: a stated share of the training records, chosen before a run by a rule that repeats itself.

A selection is a pure function of the run's seed, the number of records and how hard each of them is, so that there is
nothing to save. How hard a record is, teachers say whose outputs were written ahead (`jaxdistill cache`).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxdistill.core import hardness
from jaxdistill.core.registry import selections
from jaxdistill.data.stream import SELECTION, raw

By = Literal["entropy", "margin", "disagreement", "loss"]


class Selection(NamedTuple):
    """Which records are learned from.

    share: of all records
    order: `(seed, records, hard) -> [records]`, whom to take first; `hard` is `[records]`, or None without caches
    caches: folders of what teachers said of these records
    by: what makes a record hard
    """

    share: float
    order: Callable[[int, int, np.ndarray | None], np.ndarray]
    caches: tuple[str, ...] = ()
    by: By = "entropy"

    def count(self, records: int) -> int:
        """How many of so many records: the share, to the nearest whole number, and one at least."""
        return max(1, round(self.share * records))

    def chosen(self, seed: int, records: int, hard: np.ndarray | None) -> np.ndarray:
        """Numbers of the records, rising."""
        return np.sort(self.order(seed, records, hard)[: self.count(records)])


@selections.register
def random(share: float) -> Selection:
    """Whatever the run's seed draws. Of one seed, a smaller share is a part of every larger one.

    Args:
        share: of the records, above 0 and at most 1.
    """
    order = lambda seed, records, hard: np.argsort(raw(seed, 0, SELECTION, records), kind="stable")
    return Selection(_positive(share), order)


@selections.register
def hardest(share: float, cache: str | tuple[str, ...], by: By = "entropy") -> Selection:
    """The hardest records; of equals, the first.

    What is wrong in the data is hard, too; and of digits, the hardest tenth taught less than a drawn one
    (experiments/data).

    Args:
        share: of the records, above 0 and at most 1.
        cache: a folder that `jaxdistill cache` wrote of the same data without random augmentation, or several. Their
            mean of probabilities counts; that of a student, such as one of an earlier run, says what is hard for it.
        by: entropy, margin (the less, the harder), disagreement of several caches, or the loss beside the labels.

    Raises:
        ValueError: `share` is out of range; no cache, or one that should disagree.
    """
    return _ranked(share, cache, by, -1)


@selections.register
def easiest(share: float, cache: str | tuple[str, ...], by: By = "entropy") -> Selection:
    """The easiest records; as `hardest`."""
    return _ranked(share, cache, by, 1)


def _ranked(share: float, cache: str | tuple[str, ...], by: By, sign: int) -> Selection:
    caches = (cache,) if isinstance(cache, str) else cache
    if not caches or not all(caches):
        raise ValueError("names no cache; give the folder that jaxdistill.cache wrote.")
    if by == "disagreement" and len(caches) < 2:
        raise ValueError("by='disagreement' needs the caches of two teachers or more.")
    order = lambda seed, records, hard: np.argsort(sign * np.asarray(hard), kind="stable")
    return Selection(_positive(share), order, caches, by)


def _positive(share: float) -> float:
    if not 0 < share <= 1:
        raise ValueError(f"share is above 0 and at most 1; got {share}.")
    return share


def hard_by(by: By, logits: np.ndarray, labels: np.ndarray | None, mask: np.ndarray | None) -> np.ndarray:
    """How hard records are, `[records]` in float64; of sequences, the mean of the tokens that count.

    Args:
        by: see `hardest`.
        logits: of all teachers, `[teachers, records, classes]`, or `[teachers, records, length, classes]`.
        labels: `[records]` or `[records, length]`, for `loss`; below 0 where hidden.
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
    found = measures[by]()
    if found.ndim == 1:
        return found
    counts = np.ones(found.shape, bool) if mask is None else mask != 0
    return np.where(counts, found, 0).sum(1) / np.maximum(counts.sum(1), 1)


def _loss(p: np.ndarray, labels: Any) -> np.ndarray:
    of_label = np.take_along_axis(p, np.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    # of a class whose probability is 0 the loss is infinite, which no mean survives: the least that float64 knows
    return np.where(labels < 0, np.nan, -np.log(np.maximum(of_label, np.finfo(np.float64).tiny)))
