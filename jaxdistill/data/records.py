"""Random access to the records (examples) of a split, many records at a time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxdistill.core.errors import ConfigError, DamageError, one_line, user_location

Stack = Callable[[Sequence[Mapping[str, Any]], Sequence[int]], dict[str, np.ndarray]]
IN_MEMORY = 2**30  # bytes; smaller sets are decoded once, because decoding in every epoch costs more than a small step
REREAD = 8  # examples that are read twice to see whether a data set returns the same each time
REREAD_BYTES = 2**26  # of them together, unless one is larger
ROUNDED = 1e-3  # difference of two such readings, relative to the largest number


class Records:
    """The examples (records) of one split of a data set, accessed by number.

    Args:
        source: a sequence of examples, each a dict of arrays, numbers or texts; or one dict of arrays that stack the
            examples, `{field: [records, ...]}`, which may be memory-mapped. If a sequence has the method
            `__getitems__([i, ...])`, it is used to read several examples at once. Its attribute `nbytes`, if any, is
            the size of all examples in memory.
        classes: number of classes of the labels; None if the data set does not define it.
        vocabulary: vocabulary size of the tokenizer; None if texts are not tokenised.
        stack: function `(records, their numbers) -> {field: [records, ...]}` that stacks the records of a sequence
            whenever they are read, and may check them.
        class_names: names of the classes, in order; empty if the data set does not define them.
        fingerprint: text that changes if an example changes; empty if it is not known.
        split_sizes: number of examples in each split of the data set, by name; empty if they are not known.
        truncated: number of texts that are longer than a row of tokens, and were cut.

    Attributes:
        in_memory: True if all examples are decoded already, as for small data sets and for stacked arrays.
    """

    def __init__(
        self,
        source: Any,
        classes: int | None,
        vocabulary: int | None = None,
        stack: Stack | None = None,
        class_names: Sequence[str] = (),
        fingerprint: str = "",
        split_sizes: Mapping[str, int] | None = None,
        truncated: int = 0,
    ):
        self.classes, self.vocabulary, self._stack = classes, vocabulary, stack or _stack_records
        self.class_names, self.fingerprint = tuple(class_names), fingerprint
        self.split_sizes, self.truncated = dict(split_sizes or {}), truncated
        if isinstance(source, Mapping):
            self._columns, self.in_memory = dict(source), True
            self._length = len(next(iter(source.values())))
            return
        self._source, self._length = source, len(source)
        first = {field: column[0] for field, column in self._read([0]).items()}
        self._record_bytes = sum(np.asarray(value).nbytes for value in first.values())
        self.in_memory = max(self._length * self._record_bytes, getattr(source, "nbytes", 0)) < IN_MEMORY
        self._columns = self._read(range(self._length)) if self.in_memory else {}

    def __len__(self) -> int:
        return self._length

    def largest(self, field: str) -> int | None:
        """Return the largest value of an integer field.

        Return None if the field is missing or does not hold integers, or if the examples are not in memory.
        """
        column = self._columns.get(field)
        return int(column.max()) if column is not None and column.dtype.kind in "iub" else None

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return the examples with the numbers `indices` `[rows]` as a dict of stacked arrays, `{field: [rows, ...]}`.

        Texts, and arrays whose shapes differ between examples, are returned as arrays of Python objects, `[rows]`.
        """
        if self.in_memory:
            return {field: column[indices] for field, column in self._columns.items()}
        return self._read(indices.tolist())

    def check_repeatable(self, path: str) -> None:
        """Require that the first examples have the same values when the source is read again, one by one.

        Otherwise a cache, a second epoch or a resumed run would read other examples than the first epoch. Examples that
        share one array, which the source overwrites, are found in the same way.

        Args:
            path: config key of the data set, for the error message.

        Raises:
            ConfigError: an example has changed.
        """
        if self.fingerprint:  # then the source is a file
            return
        numbers = range(min(REREAD, self._length, max(1, REREAD_BYTES // max(1, self._record_bytes))))
        columns = self.take(np.asarray(numbers))
        together = {field: [np.array(value) for value in column] for field, column in columns.items()}  # copies
        for number in numbers:
            for field, column in self._read([number]).items():
                if not _is_same(together[field][number], np.asarray(column[0])):
                    problem = f"record {number}, field {field!r}: it has another value when it is read again"
                    cure = "Let a record depend on its number alone, and return a new array for each"
                    raise ConfigError(path, f"{problem}. {cure}; random changes belong into data.augment.")

    def _problem(self, error: IndexError, indices: Sequence[int]) -> str:
        """Return an error message that explains why reading the records `indices` raised an IndexError.

        Either the sequence has fewer records than its len(), or its own code is wrong.
        """
        text = f"({one_line(error)}){user_location(error)}"
        try:
            self._source[self._length - 1]
        except IndexError:
            return f"the data set has {self._length} records by its len(), and fewer can be read {text}. Correct it."
        return f"one of the records {list(indices)[:9]} cannot be read {text}. Correct the data set."

    def _read(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        read_many = getattr(self._source, "__getitems__", None)
        try:
            records = read_many(indices) if read_many else [self._source[index] for index in indices]
        except IndexError as error:
            raise ConfigError("data.name", self._problem(error, indices)) from error
        except RuntimeError as error:
            if "Corrupted" not in str(error):  # ArrayRecord stores and checks a hash of every chunk of records
                raise
            raise DamageError(f"a file of the data set is damaged ({error}); prepare the data again") from None
        return self._stack(records, indices)


def _is_same(first: np.ndarray, again: np.ndarray) -> bool:
    """Return True for two readings of one value, which may be rounded differently if it is computed in batches."""
    if first.shape == again.shape and first.dtype.kind == again.dtype.kind == "f":
        largest = np.abs(first).max(initial=0)
        return np.allclose(first, again, rtol=ROUNDED, atol=ROUNDED * largest, equal_nan=True)
    return np.array_equal(first, again)


def _stack_records(records: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> dict[str, np.ndarray]:
    return {field: _stack([record[field] for record in records]) for field in records[0]}


def _stack(values: Sequence[Any]) -> np.ndarray:
    arrays = [np.asarray(value) for value in values]
    if arrays[0].dtype.kind in "SUO" or any(array.shape != arrays[0].shape for array in arrays):
        return np.fromiter(values, dtype=object, count=len(values))
    return np.stack(arrays)
