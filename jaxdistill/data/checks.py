"""Stack records, and check their values: what cannot be a label, a pixel or a token is never trained on."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxdistill.core.errors import ConfigError, short_repr

LARGEST = np.iinfo(np.int32).max  # integers become int32 on the device
SUM_TOLERANCE = 0.01  # of probabilities in 16 bits
NOT_COMPUTABLE = "not a finite number in 32 bits, or its square is not"
TOKENS = ("input_ids", "token_type_ids")  # fields of embedding indices


class CheckedStack:
    """A function that stacks records into one array per field, `{field: [records, ...]}`, and checks every value.

    Args:
        classes: number of classes of the labels; None if the data set does not define it.
        path: config key of the data set, for error messages.
    """

    def __init__(self, classes: int | None, path: str):
        self._classes, self._path = classes, path
        self._first: dict[str, np.ndarray] = {}  # of each field, the value that was read first

    def __call__(self, records: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """Check records and stack them into one array per field, `{field: [records, ...]}`.

        Texts, and arrays whose shapes differ between records, become arrays of Python objects, `[records]`.

        Args:
            records: the records, which must all have the fields of the first one.
            numbers: the numbers of the records in their split, for error messages.

        Raises:
            ConfigError: a model cannot read one of the values; the message names record, field and value.
        """
        first = records[0]
        for number, record in zip(numbers, records, strict=True):
            if not isinstance(record, Mapping):
                raise self._error(number, f"{short_repr(record)} is not a dict of arrays")
            if record.keys() != first.keys():
                others = ", ".join(map(repr, sorted(record.keys() ^ first.keys(), key=str)))
                raise self._error(number, f"its fields are not those of record {numbers[0]} (see {others})")
        return {field: self._column(field, [record[field] for record in records], numbers) for field in first}

    def _column(self, field: str, values: Sequence[Any], numbers: Sequence[int]) -> np.ndarray:
        arrays = []
        for number, value in zip(numbers, values, strict=True):
            try:
                arrays.append(np.asarray(value))
            except ValueError:
                raise self._error(number, f"{short_repr(value)} is not an array", field) from None
            if np.ma.is_masked(value):
                raise self._error(number, "values are masked out, which a model would read all the same", field)
            first = self._first.setdefault(field, arrays[0])
            if problem := _kind_problem(field, value, arrays[-1], first, self._classes):
                raise self._error(number, problem, field)
        if arrays[0].dtype.kind in "SUO":
            return np.fromiter(values, dtype=object, count=len(values))
        shapes_differ = any(array.shape != arrays[0].shape for array in arrays)
        column = np.fromiter(arrays, dtype=object, count=len(arrays)) if shapes_differ else np.stack(arrays)
        for row, part in enumerate(arrays if shapes_differ else ()):
            for _, problem in _problems(field, part[None], self._classes):
                raise self._error(numbers[row], problem, field)
        for row, problem in () if shapes_differ else _problems(field, column, self._classes):
            raise self._error(numbers[row], problem, field)
        return column

    def _error(self, number: int, problem: str, field: str = "") -> ConfigError:
        place = f"record {number}, field {field!r}" if field else f"record {number}"
        return ConfigError(self._path, f"{place}: {problem}. Correct the data set, or leave this record out.")


def _is_label(field: str) -> bool:
    return field.rpartition("/")[2] == "label"


def _wanted_label(classes: int | None) -> str:
    last = LARGEST if classes is None else classes - 1
    return f"is not a class: classes are the whole numbers from 0 to {last}"


def _kind_problem(field: str, value: Any, array: np.ndarray, first: np.ndarray, classes: int | None) -> str:
    """Return an error message about the type or the label shape of a value, or an empty text if it is right."""
    kind = array.dtype.kind
    if _is_label(field):
        if kind not in "iub" or array.size == 0:
            return f"{short_repr(value)} {_wanted_label(classes)}"
        return "" if array.shape == first.shape else "its label has another shape than the labels before it"
    if kind == "O" or (kind in "SU" and not isinstance(value, str | bytes)):
        return f"{short_repr(value)} is neither an array of numbers nor a text"
    if kind not in "SUbiuf":
        return f"values of type {array.dtype} are not supported"
    if kind in "iu" and field == "image" and array.ndim > 1 and array.dtype != np.uint8:
        return f"pixels of type {array.dtype} would be read unscaled; give uint8 from 0 to 255, or scaled floats"
    if (kind in "SU") != (first.dtype.kind in "SU"):
        return f"{short_repr(value)} is of another type than the values before it"
    if kind not in "SU" and (array.ndim > 0 or kind != first.dtype.kind) and array.dtype != first.dtype:
        # stacked, all of them would become of the wider type, and a model reads uint8 and float32 pixels differently
        return f"it has the type {array.dtype}, and the values before it have {first.dtype}"
    return ""


def _problems(field: str, column: np.ndarray, classes: int | None) -> Iterator[tuple[int, str]]:
    """Yield the row of the first wrong number in a field, with an error message; yield nothing if all are right."""
    kind = column.dtype.kind
    if _is_label(field):
        last = LARGEST if classes is None else classes - 1
        if column.min() < 0 or column.max() > last:
            yield _first(column, (column < 0) | (column > last), _wanted_label(classes))
    elif kind == "f":
        with np.errstate(invalid="ignore", over="ignore"):
            narrow = column.astype(np.float32, copy=False)
            if field == "image":
                if not np.isfinite(np.vdot(narrow, narrow)) and (wrong := ~computable(narrow)).any():  # or a huge sum
                    yield _first(column, wrong, f"is {NOT_COMPUTABLE}")
            elif not np.isfinite(narrow.sum(dtype=np.float64)):  # one pass, finite if all values are
                yield _first(column, ~np.isfinite(narrow), "is not a finite number in 32 bits")
        if field.rpartition("/")[2] == "label_probs" and narrow.ndim > 1 and narrow.size:
            sums = narrow.sum(-1, dtype=np.float64)
            if narrow.min() < 0:
                yield _first(column, narrow < 0, "is no probability of a class")
            elif (wrong := (abs(sums - 1) > SUM_TOLERANCE) & ((sums != 0) | (sums.ndim < 2))).any():  # 0: padding
                yield _first(sums, wrong, "is the sum of the probabilities of the classes, which must be 1")
    elif kind in "iu" and column.size:
        low = 0 if field.rpartition("/")[2] in TOKENS else -LARGEST - 1
        if column.max() > LARGEST or column.min() < low:
            yield _first(column, (column > LARGEST) | (column < low), f"is not in {low} to {LARGEST}")


def computable(numbers: np.ndarray) -> np.ndarray:
    """Return a boolean mask of the float32 numbers whose squares are finite in 32 bits, as norms and variances need."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.isfinite(np.square(numbers)))


def _first(column: np.ndarray, wrong: np.ndarray, problem: str) -> tuple[int, str]:
    """Return the row of the first value for which the mask `wrong` is true, and an error message about this value."""
    row, *place = (int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
    where = f" at {place}" if place else ""
    return row, f"{column[(row, *place)].item()!r}{where} {problem}"
