"""Random access to the records of a split, many records at a time."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

IN_MEMORY = 2**30  # bytes; smaller sets are decoded once, because decoding in every epoch costs more than a small step


class Records:
    """The records of one split, accessed by number.

    Args:
        source: random access to records: `len(source)` and `source[i]`, a dict of arrays, numbers or text; also
            `source.__getitems__([i, ...])` if reading many at once is faster. Alternatively the fields as stacked
            arrays, `{field: [records, ...]}`, which may be memory-mapped.
        classes: number of labels; None if the data set does not define it.
        vocabulary: number of tokens; None if no text was tokenised.

    Attributes:
        in_memory: whether all records are decoded already.
    """

    def __init__(self, source: Any, classes: int | None, vocabulary: int | None = None):
        self.classes, self.vocabulary = classes, vocabulary
        if isinstance(source, Mapping):
            self._columns, self.in_memory = dict(source), True
            self._length = len(next(iter(source.values())))
            return
        self._source, self._length = source, len(source)
        decoded_bytes = self._length * sum(np.asarray(value).nbytes for value in source[0].values())
        self.in_memory = decoded_bytes < IN_MEMORY
        self._columns = self._read(range(self._length)) if self.in_memory else {}

    def __len__(self) -> int:
        return self._length

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return the records with the numbers `indices` `[rows]`, stacked: `{field: [rows, ...]}`.

        Text, and arrays whose shape differs from record to record, are returned as object arrays `[rows]`.
        """
        if self.in_memory:
            return {field: column[indices] for field, column in self._columns.items()}
        return self._read(indices.tolist())

    def _read(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        read_many = getattr(self._source, "__getitems__", None)
        records = read_many(indices) if read_many else [self._source[index] for index in indices]
        return {field: _stack([record[field] for record in records]) for field in records[0]}


def _stack(values: Sequence[Any]) -> np.ndarray:
    arrays = [np.asarray(value) for value in values]
    if arrays[0].dtype.kind in "SUO" or any(array.shape != arrays[0].shape for array in arrays):
        return np.fromiter(values, dtype=object, count=len(values))
    return np.stack(arrays)
