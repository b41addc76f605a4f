"""Whether two splits of a data set share records, told from their names."""

import itertools
import re
from collections.abc import Callable

SLICE = re.compile(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


def share_records(one: str, other: str, size: Callable[[str], int]) -> bool:
    """Whether `train[:80%]` and `train[70%:]` have a record in common; two words that are no slices, if they are equal.

    Args:
        one, other: as TensorFlow Datasets writes them: names, slices in records or percent, and sums of these.
        size: how many records a split has that is named without a slice.
    """
    parts = [[SLICE.fullmatch(part.strip()) for part in split.split("+")] for split in (one, other)]
    if not all(part for split in parts for part in split):
        return one == other
    pairs = ((a, b) for a, b in itertools.product(*parts) if a and b and a[1] == b[1])
    return any(_meet(_range(a, size(a[1])), _range(b, size(b[1]))) for a, b in pairs)


def _meet(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return max(one[0], other[0]) < min(one[1], other[1])


def _range(part: re.Match[str], size: int) -> tuple[int, int]:
    """First record, and the one after the last."""

    def place(text: str | None, default: int) -> int:
        if text is None:
            return default
        number = round(size * int(text[:-1]) / 100) if text.endswith("%") else int(text)
        return min(max(number + size if number < 0 else number, 0), size)

    return place(part[2], 0), place(part[3], size)
