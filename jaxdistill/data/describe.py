"""Describe a data set without reading it: shapes, classes and sizes.

Opening a data set takes seconds (TensorFlow Datasets, Grain, decoding), but a wrong config must fail sooner. So the
first opening writes a description next to the prepared data, and later runs read that file.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdistill.core.registry import datasets
from jaxdistill.data.datasets import open_records, prepared_hash
from jaxdistill.data.records import Records
from jaxdistill.data.stream import gather

INSPECTED = 32  # records that are read: enough to see whether images have one size


class Description(NamedTuple):
    """The shapes and sizes of a split.

    records: number of records
    fields: shape and dtype of one record's arrays, by name; -1 for a size that differs between records, as in images
    classes: number of labels; None if the data set does not define it
    vocabulary: number of tokens; None if no text was tokenised
    """

    records: int
    fields: dict[str, tuple[tuple[int, ...], str]]
    classes: int | None
    vocabulary: int | None


def describe(name: str, split: str, folder: Path, path: str, key: str, tokens: str = "") -> Description:
    """Describe a split, from the description file if it exists.

    Arguments and errors are those of `open_records`.
    """
    if tokens:  # tokenised records are memory-mapped arrays, which are opened as quickly as a description
        return _inspect(open_records(name, split, folder, path, key, tokens))
    registered = name.partition("(")[0].strip() in datasets  # may change with its code, so it gets no file
    if not registered:
        file = _description_file(name, split, folder)
        with contextlib.suppress(OSError, ValueError, KeyError):  # a missing or damaged file: inspect the records
            content = json.loads(file.read_text())
            fields = {field: (tuple(shape), dtype) for field, (shape, dtype) in content["fields"].items()}
            return Description(content["records"], fields, content["classes"], None)
    description = _inspect(open_records(name, split, folder, path, key))
    if not registered:
        file = _description_file(name, split, folder)  # another name than above if the data were prepared just now
        with contextlib.suppress(OSError):  # a read-only folder costs time, but must not stop the run
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(f".{os.getpid()}")  # renamed when complete: several processes may write it
            temporary.write_text(json.dumps({**description._asdict(), "data set": name, "split": split}))
            temporary.replace(file)
    return description


def _description_file(name: str, split: str, folder: Path) -> Path:
    key = f"{name} {split} {prepared_hash(name, folder)}"
    return folder / "descriptions" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _inspect(records: Records) -> Description:
    index = np.arange(min(INSPECTED, len(records)))
    batch = gather(records, index, np.ones(len(index), np.float32))
    shapes = {field: _shape(column) for field, column in batch.items()}
    fields = {field: shape for field, shape in shapes.items() if shape}
    return Description(len(records), fields, records.classes, records.vocabulary)


def _shape(column: np.ndarray) -> tuple[tuple[int, ...], str] | None:
    """Return shape and dtype of one record's array; None for text."""
    if column.dtype != object:
        return column.shape[1:], str(column.dtype)
    if not all(isinstance(value, np.ndarray) and value.ndim == column[0].ndim for value in column):
        return None
    sizes = zip(*(value.shape for value in column), strict=True)
    return tuple(size[0] if len(set(size)) == 1 else -1 for size in sizes), str(column[0].dtype)
