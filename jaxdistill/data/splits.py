"""Split the records of a data set: read names such as `train[:80%]`, and choose records to hold out."""

import itertools
import re
from collections.abc import Callable, Mapping

import numpy as np

from jaxdistill.core.errors import suggest

SPLIT = re.compile(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


def share_records(one: str, other: str, size: Callable[[str], int]) -> bool:
    """Return True if two splits of a data set, such as `train[:80%]` and `train[70%:]`, have an example in common.

    If one of the splits does not have the syntax below, the result is True only if the two strings are equal.

    Args:
        one, other: the splits, in the syntax of TensorFlow Datasets: a name such as `train`; a slice in examples or
            percent, such as `train[100:]`; or a sum, such as `train[:10%]+test`.
        size: function that returns the number of examples in a whole split, given the name of the split.
    """
    parts = [[SPLIT.fullmatch(part.strip()) for part in split.split("+")] for split in (one, other)]
    if not all(part for split in parts for part in split):
        return one == other
    pairs = ((a, b) for a, b in itertools.product(*parts) if a and b and a[1] == b[1])
    return any(_overlap(_range(a, size(a[1])), _range(b, size(b[1]))) for a, b in pairs)


def split_names(split: str) -> set[str]:
    """Return the set of whole splits that a split refers to, such as `train` and `test` for `train[:80%]+test`."""
    parts = (SPLIT.fullmatch(part.strip()) for part in split.split("+"))
    return {part[1] for part in parts if part}


class SplitError(KeyError):
    """The error for a split that a data set does not have.

    Args:
        split: the split.
        problem: what is wrong with it, and which splits there are.
    """

    def __init__(self, split: str, problem: str):
        self.problem = problem
        super().__init__(split)


def select_rows(split: str, sizes: Mapping[str, int]) -> list[tuple[str, range]]:
    """Return the records that a split such as `train[:80%]+test` selects.

    Args:
        split: the split, in the syntax of TensorFlow Datasets; see `share_records`.
        sizes: number of records of each whole split, by name.

    Returns:
        A list of pairs (name of a whole split, range of record numbers in it), one pair for each term of the sum.

    Raises:
        SplitError: there is no such split, it has another form, or it is empty.
    """
    parts = []
    for text in split.split("+"):
        part = SPLIT.fullmatch(text.strip())
        if part is None:
            raise SplitError(split, "A split is a name, or a slice such as train[:80%].")
        if part[1] not in sizes:
            raise SplitError(split, suggest(part[1], sizes))
        parts.append((part[1], range(*_range(part, sizes[part[1]]))))
    if not sum(len(rows) for _, rows in parts):
        raise SplitError(split, "It has no records.")
    return parts


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return max(one[0], other[0]) < min(one[1], other[1])


def _range(part: re.Match[str], size: int) -> tuple[int, int]:
    """Return the number of the first record of a slice, and the number after that of its last record.

    Args:
        part: match of `SPLIT`, such as that of `train[:80%]`.
        size: number of records of the whole split.
    """

    def position(text: str | None, default: int) -> int:
        if text is None:
            return default
        if text.endswith("%") and abs(int(text[:-1])) > 100:
            raise SplitError(part[0], f"{text} is more than the whole split.")
        number = round(size * int(text[:-1]) / 100) if text.endswith("%") else int(text)
        return min(max(number + size if number < 0 else number, 0), size)

    return position(part[2], 0), position(part[3], size)


def choose_held_out(classes: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Choose the test records at random, the same share of each class, and return them as a boolean mask.

    A class keeps at least one training record. The number of test records per class is rounded in such a way that their
    sum is the share of all records.

    Args:
        classes: class of each record, `[records]`.
        share: share of the records to choose.
        seed: random seed.

    Returns:
        A boolean mask, `[records]`, which is True for each record that was chosen.
    """
    draws = np.random.Philox(key=np.array([seed, 0], np.uint64)).random_raw(len(classes))
    chosen = np.zeros(len(classes), bool)
    _, first, records = np.unique(classes, return_index=True, return_counts=True)
    counts, rest = np.floor(share * records).astype(int), share * records % 1
    most_left = np.lexsort((draws[first], -rest))  # largest remainder first; ties in random order
    counts[most_left[: round(share * len(classes)) - counts.sum()]] += 1
    for number, count, available in zip(classes[first], counts, records, strict=True):
        rows = np.flatnonzero(classes == number)
        chosen[rows[np.argsort(draws[rows], kind="stable")[: min(count, available - 1)]]] = True
    return chosen
