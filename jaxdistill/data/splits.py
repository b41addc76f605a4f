"""Check from the names of two splits whether they share records."""

import itertools
import re
from collections.abc import Callable

SLICE = re.compile(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


def share_records(one: str, other: str, size: Callable[[str], int]) -> bool:
    """Return whether two splits, such as `train[:80%]` and `train[70%:]`, have a record in common.

    Names that are not slices share records if they are equal.

    Args:
        one, other: in the syntax of TensorFlow Datasets: names, slices in records or percent, and sums of these.
        size: returns the number of records of a whole split, such as `train`.
    """
    parts = [[SLICE.fullmatch(part.strip()) for part in split.split("+")] for split in (one, other)]
    if not all(part for split in parts for part in split):
        return one == other
    pairs = ((a, b) for a, b in itertools.product(*parts) if a and b and a[1] == b[1])
    return any(_overlap(_range(a, size(a[1])), _range(b, size(b[1]))) for a, b in pairs)


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return max(one[0], other[0]) < min(one[1], other[1])


def _range(part: re.Match[str], size: int) -> tuple[int, int]:
    """Return the first record of a slice, and the one after the last."""

    def position(text: str | None, default: int) -> int:
        if text is None:
            return default
        number = round(size * int(text[:-1]) / 100) if text.endswith("%") else int(text)
        return min(max(number + size if number < 0 else number, 0), size)

    return position(part[2], 0), position(part[3], size)
