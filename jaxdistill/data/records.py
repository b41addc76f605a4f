"""Random access to the records of a split, in stacks."""

from collections.abc import Sequence
from typing import Any

import numpy as np

IN_MEMORY = 2**30  # bytes; below it a set is decoded once, since decoding every epoch costs more than a small step


class Records:
    """The records of one split, by number.

    Args:
        source: random access to records: `len(source)` and `source[i]`, a dict of arrays, numbers or text; also
            `source.__getitems__([i, ...])` where reading many at once is faster.
        classes: how many labels there are; None if the data set does not say.

    Attributes:
        in_memory: whether all of it was decoded when it was opened.
    """

    def __init__(self, source: Any, classes: int | None):
        self._source, self._length, self.classes = source, len(source), classes
        decoded = self._length * sum(np.asarray(value).nbytes for value in source[0].values())
        self.in_memory = decoded < IN_MEMORY
        self._columns = self._read(range(self._length)) if self.in_memory else {}

    def __len__(self) -> int:
        return self._length

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The records of these numbers `[rows]`, stacked: `{field: [rows, ...]}`.

        Text, and arrays whose shape differs from record to record, come as an object array `[rows]`.
        """
        if self.in_memory:
            return {field: column.take(indices, axis=0) for field, column in self._columns.items()}
        return self._read(indices.tolist())

    def _read(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        many = getattr(self._source, "__getitems__", None)
        records = many(indices) if many else [self._source[index] for index in indices]
        return {field: _stack([record[field] for record in records]) for field in records[0]}


def _stack(values: Sequence[Any]) -> np.ndarray:
    arrays = [np.asarray(value) for value in values]
    if arrays[0].dtype.kind in "SUO" or any(array.shape != arrays[0].shape for array in arrays):
        return np.fromiter(values, dtype=object, count=len(values))
    return np.stack(arrays)
