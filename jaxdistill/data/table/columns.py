"""What the columns of a user's file mean: texts, labels, images or numbers; check their values and convert them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdistill.data.table.files import Chunk, Problem

UNLABELLED = -1  # the code of a record without a label


class Roles(NamedTuple):
    """Which columns of a file are read, and as what.

    text: columns of texts
    label: column of the labels; empty: the records have none
    image: column of images, each a file's path or the bytes of a file; empty: none
    features: columns of numbers, which become one vector
    """

    text: tuple[str, ...]
    label: str
    image: str
    features: tuple[str, ...]

    def named(self) -> dict[str, tuple[str, ...]]:
        """Return the columns by the argument that names them, without empty ones."""
        one = lambda name: (name,) if name else ()
        columns = {"text": self.text, "label": one(self.label), "image": one(self.image), "features": self.features}
        return {argument: names for argument, names in columns.items() if names}

    def columns(self) -> tuple[str, ...]:
        """Return all columns that are read, each once."""
        return tuple(dict.fromkeys(name for names in self.named().values() for name in names))

    def text_fields(self) -> tuple[str, ...]:
        """Return the fields of a record that hold its texts: `text` for one column, else the names of the columns."""
        return ("text",) if len(self.text) == 1 else self.text


class Classes:
    """The classes of a column of labels, in the order in which they are found; `finish` puts them into their order.

    Args:
        names: names of the classes, if the file defines them for its numbers; empty: the values are the names.
    """

    def __init__(self, names: Sequence[str] = ()):
        self._names = tuple(names)
        self._codes: dict[str, int] = {}
        self._kinds: dict[str, str] = {}  # "number" or "word" -> where the first label of this kind stands
        self.complete = False  # True: a label that was not found before is a mistake

    def codes(self, values: Sequence[Any], first: int, file: object) -> list[int]:
        """Return a number for each label, in the order in which they are found; `UNLABELLED` for an empty one.

        Args:
            values: the labels: words, whole numbers or truth values; None or "" if there is none.
            first: number of the first record, for error messages.
            file: the file, for error messages.

        Raises:
            Problem: a value cannot be a label, or some labels are words and others numbers.
        """
        return [self._code(value, number, file) for number, value in enumerate(values, first)]

    def _code(self, value: Any, number: int, file: object) -> int:
        name = label_name(value)
        if name is None:
            problem = f"{_short(value)} is not a label: a word, or a whole number"
            raise Problem(f"{file}, record {number}: {problem}.")
        if not name:
            return UNLABELLED
        if self._names:
            name = self._defined_name(name, number, file)
        if name not in self._codes and self.complete:
            known = ", ".join(list(self._codes)[:20])
            raise Problem(
                f"{file}, record {number}: the label {name!r} does not occur in the training records ({known})."
            )
        if name not in self._codes:
            self._codes[name] = len(self._codes)
            self._kinds.setdefault("number" if _is_whole(name) else "word", f"record {number}, {name!r}")
        return self._codes[name]

    def _defined_name(self, name: str, number: int, file: object) -> str:
        if not _is_whole(name) or not 0 <= int(name) < len(self._names):
            raise Problem(f"{file}, record {number}: {name!r} is none of the {len(self._names)} classes of the file.")
        return self._names[int(name)]

    def finish(self, file: object, records: int) -> tuple[tuple[str, ...], list[int]]:
        """Return the names of all classes in order, and for each code of `codes` the number of its class.

        Numbers are ordered by value and words by alphabet. A file that defines its classes keeps their order.

        Raises:
            Problem: there are no labels; some are words and others numbers; or almost every record has its own.
        """
        if not self._codes:
            raise Problem(f"{file}: no record has a label. Leave the argument label out.")
        if len(self._kinds) > 1 and not self._names:
            raise Problem(
                f"{file}: some labels are numbers and others are words ({' and '.join(self._kinds.values())})."
            )
        if len(self._codes) > max(20, records // 2):
            raise Problem(
                f"{file}: {records} records have {len(self._codes)} different labels, so they are no classes."
            )
        words = "word" in self._kinds
        names = self._names or tuple(sorted(self._codes, key=None if words else int))
        place = {name: number for number, name in enumerate(names)}
        return names, [place[name] for name in self._codes]


def label_name(value: Any) -> str | None:
    """Return the name of a label as a text; empty: there is no label; None: the value cannot be a label."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas writes whole numbers with a gap among them as floats
    if isinstance(value, np.integer | np.bool_):
        value = value.item()
    if not isinstance(value, str | int):
        return None
    text = str(value).strip()
    try:
        number = float(text)
    except ValueError:
        return text
    if not number.is_integer():
        return None
    return str(int(number))


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").isdigit()


def converted(chunks: Iterator[Chunk], roles: Roles, classes: Classes, file: object) -> Iterator[dict[str, Any]]:
    """Yield chunks of a file as columns of one type each: texts, images, vectors, and codes of labels.

    Args:
        chunks: the chunks of the file.
        roles: what its columns mean.
        classes: collects the classes of the labels.
        file: the file, for error messages.

    Raises:
        Problem: a value is of another type; the message names file, record and column.
    """
    first = 0
    for chunk in chunks:
        count = len(next(iter(chunk.values())))
        columns: dict[str, Any] = {}
        for name, field in zip(roles.text, roles.text_fields(), strict=True):
            columns[field] = _texts(chunk[name], first, f"{file}", name)
        if roles.features:
            columns["image"] = _vectors(chunk, roles.features, first, f"{file}")
        if roles.image:
            columns["image"] = _images(chunk[roles.image], first, f"{file}")
        if roles.label:
            columns["label"] = classes.codes(chunk[roles.label], first, file)
        yield columns
        first += count


def _texts(values: Sequence[Any], first: int, file: str, column: str) -> list[str]:
    for number, value in enumerate(values, first):
        if not isinstance(value, str):
            problem = "is missing" if value is None else f"is {_short(value)}, not a text"
            raise Problem(f"{file}, record {number}: {column!r} {problem}. Correct it, or leave the record out.")
    return list(values)


def _vectors(chunk: Mapping[str, Sequence[Any]], names: Sequence[str], first: int, file: str) -> np.ndarray:
    """Return the numbers of several columns as one vector for each record, `[records, numbers]` float32."""
    parts = [_numbers(chunk[name], first, file, name) for name in names]
    return np.concatenate(parts, axis=1)


def _numbers(values: Sequence[Any], first: int, file: str, column: str) -> np.ndarray:
    """Return the numbers of one column, `[records, numbers]`: one for each record, or the elements of its array."""
    try:
        array = np.asarray(values, np.float32)
        if np.isfinite(array).all():
            return array.reshape(len(values), -1)
    except (TypeError, ValueError):
        pass  # find the value
    for number, value in enumerate(values, first):
        try:
            right = bool(np.isfinite(np.asarray(value, np.float32)).all())
        except (TypeError, ValueError):
            right = False
        if not right:
            problem = f"{column!r} is {_short(value)}, not a finite number"
            raise Problem(f"{file}, record {number}: {problem}. Correct it, or leave the record out.")
    raise Problem(f"{file}: the arrays in {column!r} differ in shape from record to record.")


def _images(values: Sequence[Any], first: int, file: str) -> list[Any] | np.ndarray:
    """Return images as arrays `[records, height, width, channels]`, or as the paths or contents of image files."""
    if isinstance(values[0], np.ndarray):
        array = np.stack(values)
        if array.ndim not in (2, 3, 4) or array.dtype.kind not in "uif":
            raise Problem(f"{file}: images of shape {list(array.shape[1:])} and type {array.dtype} cannot be read.")
        return array[..., None] if array.ndim == 3 else array
    images = [value.get("bytes") or value.get("path") if isinstance(value, Mapping) else value for value in values]
    for number, image in enumerate(images, first):
        if not isinstance(image, bytes | str) or not image or type(image) is not type(images[0]):
            raise Problem(f"{file}, record {number}: {_short(image)} is neither the path nor the bytes of an image.")
    return images


def _short(value: Any) -> str:
    return " ".join(repr(value).split())[:80]
