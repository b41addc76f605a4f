"""What a data set looks like, without reading it: shapes, classes and sizes.

Opening a data set takes seconds (TensorFlow Datasets, Grain, decoding); a wrong config must fail sooner. So the first
opening leaves a note beside the prepared data, and later runs read that.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdistill.core.registry import datasets
from jaxdistill.data.datasets import open_records, version
from jaxdistill.data.records import Records
from jaxdistill.data.stream import gather

LOOKED_AT = 32  # records: enough to see whether images have one size


class Description(NamedTuple):
    """A split at a glance.

    records: how many
    fields: shape and dtype of one record's arrays, by name; a size is -1 where records differ in it, as images do
    classes: how many labels there are; None if the data set does not say
    vocabulary: how many tokens there are; None where no text was tokenised
    """

    records: int
    fields: dict[str, tuple[tuple[int, ...], str]]
    classes: int | None
    vocabulary: int | None


def describe(name: str, split: str, folder: Path, path: str, key: str, tokens: str = "") -> Description:
    """The description of a split, from the note where there is one; arguments as of `open_records`."""
    if tokens:  # kept as arrays, which are opened as quickly as a note
        return _look(open_records(name, split, folder, path, key, tokens))
    registered = name.partition("(")[0].strip() in datasets  # may change with its code: no note
    if not registered:
        note = _note(name, split, folder)
        with contextlib.suppress(OSError, ValueError, KeyError):  # no note, or half of one: look again
            content = json.loads(note.read_text())
            fields = {field: (tuple(shape), dtype) for field, (shape, dtype) in content["fields"].items()}
            return Description(content["records"], fields, content["classes"], None)
    found = _look(open_records(name, split, folder, path, key))
    if not registered:
        note = _note(name, split, folder)  # of the files as they are prepared by now
        with contextlib.suppress(OSError):  # a folder that cannot be written costs time, not the run
            note.parent.mkdir(parents=True, exist_ok=True)
            half = note.with_suffix(f".{os.getpid()}")  # renamed when whole: several processes may look at once
            half.write_text(json.dumps({**found._asdict(), "data set": name, "split": split}))
            half.replace(note)
    return found


def _note(name: str, split: str, folder: Path) -> Path:
    key = f"{name} {split} {version(name, folder)}"
    return folder / "descriptions" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _look(records: Records) -> Description:
    index = np.arange(min(LOOKED_AT, len(records)))
    some = gather(records, index, np.ones(len(index), np.float32))
    looks = {field: _shape(value) for field, value in some.items()}
    fields = {field: look for field, look in looks.items() if look}
    return Description(len(records), fields, records.classes, records.vocabulary)


def _shape(column: np.ndarray) -> tuple[tuple[int, ...], str] | None:
    """Shape and dtype of a record's array; None for text."""
    if column.dtype != object:
        return column.shape[1:], str(column.dtype)
    if not all(isinstance(value, np.ndarray) and value.ndim == column[0].ndim for value in column):
        return None
    sizes = zip(*(value.shape for value in column), strict=True)
    return tuple(size[0] if len(set(size)) == 1 else -1 for size in sizes), str(column[0].dtype)
