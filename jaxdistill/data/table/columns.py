"""Check and convert the columns of a user's file: texts, labels, images or numbers."""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdistill.core.errors import short_repr
from jaxdistill.data.checks import NOT_COMPUTABLE, computable
from jaxdistill.data.table.record_reader import Chunk, TableError

SURROGATE = re.compile("[\ud800-\udfff]")  # JSON may have one alone, UTF-8 may not
NO_LABEL = -1  # the code of a record without a label
FEW_CLASSES = 20  # more are labels only if each stands, on average, for two records


class ColumnNames(NamedTuple):
    """The names of the columns that are read from a user's file, by their use.

    text: columns of texts
    label: column of the labels; empty if the records have none
    image: column of images, each a file's path or the bytes of a file; empty if there is none
    features: columns of numbers, which become one vector
    """

    text: tuple[str, ...]
    label: str
    image: str
    features: tuple[str, ...]

    def named(self) -> dict[str, tuple[str, ...]]:
        """Return the column names by argument (`text`, `label`, `image`, `features`), without empty arguments."""
        one = lambda name: (name,) if name else ()
        columns = {"text": self.text, "label": one(self.label), "image": one(self.image), "features": self.features}
        return {argument: names for argument, names in columns.items() if names}

    def columns(self) -> tuple[str, ...]:
        """Return the names of all columns that are read, each once."""
        return tuple(dict.fromkeys(name for names in self.named().values() for name in names))

    def text_fields(self) -> tuple[str, ...]:
        """Return the fields of a record that hold its texts: `text` for one column, else the names of the columns."""
        return ("text",) if len(self.text) == 1 else self.text


ABSENT = {"NA", "N/A", "n/a", "nan", "NaN", "null", "NULL", "None"}  # labels that may mean that there is none
RARE = 3  # a class with fewer training records may be a slip


class Classes:
    """The classes of a column of labels, collected while its records are read; `finish` then sorts and numbers them.

    Args:
        names: names of the classes, if the file defines them for its numbers; empty if the labels are the names.
    """

    def __init__(self, names: Sequence[str] = ()):
        self._names = tuple(names)
        self._codes: dict[str, int] = {}
        self._first: dict[str, int] = {}  # label -> number of the first record that has it
        self._counts: Counter[str] = Counter()  # label -> number of training records that have it
        self._spellings: dict[str, str] = {}  # label -> the first spelling, perhaps with blanks around it
        self._merged = ""  # a spelling whose blanks alone tell it from another one
        self._complete = False  # True: a label that was not found before is a mistake

    def codes(self, values: Sequence[Any], first: int, file: object) -> list[int]:
        """Return a code for each label, a number in the order of first occurrence; empty labels get `NO_LABEL` (-1).

        Args:
            values: the labels: words, whole numbers or truth values; None or "" if there is none.
            first: number of the first record, for error messages.
            file: the file, for error messages.

        Raises:
            TableError: a value cannot be a label, or it does not occur in the training records.
        """
        return [self._code(value, number, file) for number, value in enumerate(values, first)]

    def _code(self, value: Any, number: int, file: object) -> int:
        name = label_name(value)
        if name is None:
            problem = f"{short_repr(value)} is no label. Labels are words or whole numbers"
            raise TableError(f"{file}, record {number}: {problem}.")
        if "\n" in name:
            problem = f"the label {short_repr(name)} has several lines"
            raise TableError(f"{file}, record {number}: {problem}. Close the quotation mark at its beginning.")
        if name and isinstance(value, str) and self._spellings.setdefault(name, value) != value:
            self._merged = self._merged or f"{self._spellings[name]!r} and {value!r}"
        if name and self._names:
            name = self._defined_name(name, number, file)
        if not name:
            return NO_LABEL
        if name not in self._codes and self._complete:
            value = _number(name)
            same = next((known for known in self._codes if value is not None and _number(known) == value), "")
            if not same:
                known = ", ".join(list(self._codes)[:20])
                raise TableError(
                    f"{file}, record {number}: the label {name!r} does not occur in the training records ({known})."
                )
            name = same
        if name not in self._codes:
            self._codes[name], self._first[name] = len(self._codes), number
        self._counts[name] += not self._complete
        return self._codes[name]

    def doubtful_labels(self) -> str:
        """Return a warning about labels that may be mistakes, such as classes with very few training records.

        The text is empty if there is nothing to report. If most classes are so small, none of them is reported.
        """
        absent = [name for name in self._codes if name in ABSENT or (name == "-1" and len(self._codes) > 2)]
        if absent:
            return (
                f"the label {absent[0]!r} is a class like any other; leave the cell empty where a record has no label"
            )
        if self._merged:
            return f"the labels {self._merged} are one class, because blanks around a label are removed"
        records_by_preview = defaultdict(list)
        for name in self._codes:
            records_by_preview[_look(name)].append(name)
        if alike := next((names for names in records_by_preview.values() if len(names) > 1), None):
            return f"the classes {alike[0]!a} and {alike[1]!a} look alike, and are two classes; check the spelling"
        few = {name: count for name, count in self._counts.items() if count < RARE}
        if not few or len(few) > len(self._counts) // 2:
            return ""
        name = min(few, key=self._first.__getitem__)
        others = f", and {len(few) - 1} more classes have so few" if len(few) > 1 else ""
        records = "1 record" if few[name] == 1 else f"{few[name]} records"
        return f"the class {name!r} has {records} (the first is {self._first[name]}){others}; check the spelling"

    def _defined_name(self, name: str, number: int, file: object) -> str:
        """Return the name of a class that the file defines for a number; empty for -1, which stands for no label.

        Raises:
            TableError: the file defines no class of this number.
        """
        if name == "-1":
            return ""
        if not name.isdecimal() or int(name) >= len(self._names):
            raise TableError(
                f"{file}, record {number}: {name!r} is none of the {len(self._names)} classes of the file."
            )
        return self._names[int(name)]

    def finish(self, file: object, records: int) -> tuple[tuple[str, ...], list[int]]:
        """Return a tuple of the names of all classes in order, and a list of the class number for each label code.

        Whole numbers are ordered by value, and 1 and 1.0 are one class; words are ordered by alphabet. A file that
        defines its classes keeps their order. Afterwards, `codes` rejects labels that it has not met before.

        Raises:
            TableError: there are no labels, or only one; some are words and others numbers; or they are too many.
        """
        self._complete = True
        if not self._codes:
            raise TableError(f"{file}: no record has a label. Leave the argument label out.")
        numbers = {name: _number(name) for name in self._codes}
        kinds = {name: "a number" if value is not None else "a word" for name, value in numbers.items()}
        if len(set(kinds.values())) > 1 and not self._names:
            places = {kind: f"record {self._first[name]} has {name!r}" for name, kind in reversed(kinds.items())}
            cure = "Write all of them as numbers, or all as words"
            problem = f"some labels are numbers and others are words ({', '.join(places.values())})"
            raise TableError(f"{file}: {problem}. {cure}.")
        if len(self._codes) < 2 and not self._names:
            raise TableError(f"{file}: all labels are {next(iter(self._codes))!r}; a classifier needs two classes.")
        if len(self._codes) > max(FEW_CLASSES, records // 2):
            problem = f"{records} records have {len(self._codes)} different labels, so they are no classes"
            raise TableError(f"{file}: {problem}. Name a column with few values.")
        if not self._names and "a number" in kinds.values():
            order = sorted({value for value in numbers.values() if value is not None})
            return tuple(map(str, order)), [order.index(numbers[name] or 0) for name in self._codes]
        names = self._names or tuple(sorted(self._codes))
        place = {name: number for number, name in enumerate(names)}
        return names, [place[name] for name in self._codes]


def label_name(value: Any) -> str | None:
    """Return a label as text, an empty text for a missing label, or None for a value that cannot be a label."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas writes whole numbers with a gap among them as floats
    if not isinstance(value, str | int):
        return None
    text = str(value).strip()
    if not text.isascii() and SURROGATE.search(text):
        return None
    return None if re.fullmatch(r"[-+]?\d*\.\d*[1-9]\d*", text) else text


def _look(name: str) -> str:
    """Return a label without case, combining accents and invisible characters, to find labels that look alike."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return "".join(x for x in plain if unicodedata.category(x) not in ("Cf", "Cc", "Mn")).strip()


def _number(name: str) -> int | None:
    """Return the value of a label that is a whole number, such as 7 or 7.0; None for a word, such as 007."""
    match = re.fullmatch(r"(-?(?:0|[1-9]\d*))(?:\.0+)?", name)
    return int(match[1]) if match else None


def convert_chunks(
    chunks: Iterator[Chunk], column_names: ColumnNames, classes: Classes, file: object, first: int = 0
) -> Iterator[dict[str, Any]]:
    """Check the chunks of a file, and yield each as a dict of columns: texts, images or vectors, and label codes.

    Args:
        chunks: the chunks of the file.
        column_names: names and uses of the columns.
        classes: the object that collects the classes of the labels.
        file: the file, for error messages.
        first: number of the first record, for error messages.

    Raises:
        TableError: a value is of another type; the message names file, record and column.
    """
    kinds: dict[str, Any] = {}
    for chunk in chunks:
        count = len(next(iter(chunk.values())))
        columns: dict[str, Any] = {}
        for name, field in zip(column_names.text, column_names.text_fields(), strict=True):
            columns[field] = _texts(chunk[name], first, f"{file}", name)
        if column_names.features:
            columns["image"] = _vectors(chunk, column_names.features, first, f"{file}")
        if column_names.image:
            columns["image"] = _images(chunk[column_names.image], first, f"{file}")
        _check_kinds(columns, kinds, file, first)
        if column_names.label:
            columns["label"] = classes.codes(chunk[column_names.label], first, file)
        yield columns
        first += count


def _check_kinds(columns: Mapping[str, Any], kinds: dict[str, Any], file: object, first: int) -> None:
    """Require that each field has the same type and array shape in all chunks; `kinds` keeps them by field.

    Raises:
        TableError: the type or the shape differs; the message names file, record and field.
    """
    for field, values in columns.items():
        is_array = isinstance(values, np.ndarray)
        kind = f"arrays {list(values.shape[1:])} {values.dtype}" if is_array else type(values[0]).__name__
        if kinds.setdefault(field, kind) != kind:
            raise TableError(
                f"{file}, record {first}: {field!r} has {kind}, and the records before have {kinds[field]}."
            )


def _texts(values: Sequence[Any], first: int, file: str, column: str) -> list[str]:
    for number, value in enumerate(values, first):
        if not isinstance(value, str):
            problem = "is missing" if value is None else f"is {short_repr(value)}, not a text"
            raise TableError(f"{file}, record {number}: {column!r} {problem}. Correct it, or leave the record out.")
        if not value.isascii() and SURROGATE.search(value):
            problem = f"{file}, record {number}: {column!r} has an unpaired surrogate, which is not valid Unicode"
            raise TableError(f"{problem}. Correct it, or leave the record out.")
        if "\0" in value:
            problem = f"{file}, record {number}: {column!r} has a zero byte, as no text has"
            raise TableError(f"{problem}. Name the file's encoding, such as utf-16, or leave the record out.")
    return list(values)


def _vectors(chunk: Mapping[str, Sequence[Any]], names: Sequence[str], first: int, file: str) -> np.ndarray:
    """Return the numbers of several columns as one vector for each record, `[records, numbers]` float32."""
    parts = [_numbers(chunk[name], first, file, name) for name in names]
    return np.concatenate(parts, axis=1)


def _numbers(values: Sequence[Any], first: int, file: str, column: str) -> np.ndarray:
    """Return the numbers of one column as float32, `[records, numbers]`; a record has one number, or a whole array."""
    try:
        array = _float32(values)
        if computable(array).all():
            return array.reshape(len(values), -1)
    except (TypeError, ValueError):
        pass  # find the value
    for number, value in enumerate(values, first):
        try:
            right = bool(computable(_float32(value)).all())
        except (TypeError, ValueError):
            right = False
        if not right:
            problem = f"{column!r} {_not_finite(value)}"
            raise TableError(f"{file}, record {number}: {problem}. Correct it, or leave the record out.")
    raise TableError(f"{file}: the arrays in {column!r} differ in shape from record to record.")


def _not_finite(value: Any) -> str:
    """Return the part of an error message that says which value is no finite number, or is too large."""
    try:
        array = _float32(value)
    except (TypeError, ValueError):
        return f"is {short_repr(value)}, not a finite number"
    place = np.argwhere(~computable(array))[0].tolist()
    if not place:
        return f"is {short_repr(value)}, {NOT_COMPUTABLE}"
    return f"is {array[tuple(place)]} at {place}, {NOT_COMPUTABLE}"


def _float32(values: Any) -> np.ndarray:
    """Convert numbers, or texts of numbers, to a float32 array; a number that is too large becomes infinite.

    Raises:
        ValueError: a text is no number, or has underscores (which only Python allows in numbers) or zero bytes.
        TypeError: a value is no number, or truth values are mixed with numbers.
    """
    each = values if isinstance(values, list | tuple) else [values]
    kinds = set(map(type, each))
    if str in kinds and any(isinstance(value, str) and ("_" in value or "\0" in value) for value in each):
        raise ValueError
    if bool in kinds and len(kinds) > 1:
        raise TypeError
    with np.errstate(over="ignore"):
        array = np.asarray(values)
        if array.dtype.kind in "cmM":  # complex numbers and dates would lose a part
            raise TypeError
        return array.astype(np.float32)


def _images(values: Sequence[Any], first: int, file: str) -> list[Any] | np.ndarray:
    """Return images as arrays `[records, height, width, channels]`, or as the paths or contents of image files."""
    if isinstance(values[0], np.ndarray):
        array = np.stack(values)
        if array.ndim not in (2, 3, 4) or array.dtype.kind not in "uif":
            raise TableError(f"{file}: images of shape {list(array.shape[1:])} and type {array.dtype} cannot be read.")
        return array[..., None] if array.ndim == 3 else array
    images = [value.get("bytes") or value.get("path") if isinstance(value, Mapping) else value for value in values]
    for number, image in enumerate(images, first):
        if not isinstance(image, bytes | str) or not image or type(image) is not type(images[0]):
            raise TableError(
                f"{file}, record {number}: {short_repr(image)} is neither the path nor the bytes of an image."
            )
    return images
