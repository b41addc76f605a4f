"""Describe a data set without reading it: shapes, classes and sizes.

Opening a data set takes seconds (TensorFlow Datasets, Grain, decoding), but a wrong config must fail sooner. So the
first opening writes a description next to the prepared data, and later runs read that file.
"""

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.core.notes import note_damage
from jaxdistill.core.registry import datasets
from jaxdistill.data.datasets import open_records, prepared_hash
from jaxdistill.data.records import Records
from jaxdistill.data.stream import gather

FORMAT = 3  # version of the description files; raise it to have all of them written again
INSPECTED = 32  # records that are read: enough to see whether images have one size


class Description(NamedTuple):
    """The number of examples in a split of a data set, and the shapes, classes and vocabulary of the examples.

    records: number of examples
    fields: shape and dtype of one example's array, for each field other than text; -1 stands for a size that differs
        between examples, such as the height of images
    classes: number of classes of the labels; None if the data set does not define it
    vocabulary: vocabulary size of the tokenizer; None if texts are not tokenised
    largest_label: greatest class number of the labels; None if it is unknown
    class_names: names of the classes, in order; empty if the data set does not define them
    split_sizes: number of examples in each split of the data set; empty if they are not known
    texts: fields that hold texts
    truncated: number of texts that are longer than a row of tokens, and are cut
    """

    records: int
    fields: dict[str, tuple[tuple[int, ...], str]]
    classes: int | None
    vocabulary: int | None
    largest_label: int | None = None
    class_names: tuple[str, ...] = ()
    split_sizes: Mapping[str, int] = MappingProxyType({})
    texts: tuple[str, ...] = ()
    truncated: int = 0


def describe_split(name: str, split: str, folder: Path, path: str, key: str, tokens: str = "") -> Description:
    """Return the number of examples in a split, and their shapes, number of classes and vocabulary size.

    A description file in `folder` is read if it exists. Otherwise the data set is opened, which takes seconds, and the
    file is written. There is no file for a data set in `registry.datasets`, because the code that makes the data may
    change, nor for tokenised texts, because these open quickly.

    Args:
        name: name of the data set, such as `mnist5k`.
        split: split of the data set, such as `train[:80%]`.
        folder: folder in which TensorFlow Datasets keeps prepared data sets.
        path, key: section and key of the split in the config, such as `data` and `train`, for error messages.
        tokens: spec string of the tokenization, such as `documents(tokenizer='FOLDER', length=128)`; if it is empty,
            texts are not tokenised.

    Raises:
        ConfigError: the name, split, tokenizer or text field does not exist, or preparation failed.
    """
    if tokens:  # tokenised records are memory-mapped arrays, which are opened as quickly as a description
        return _inspect(open_records(name, split, folder, path, key, tokens))
    registered = name.partition("(")[0].strip() in datasets  # may change with its code, so it gets no file
    if not registered:
        file = _description_file(name, split, folder)
        try:
            content = seal.read(file, {"records": int, "fields": dict})
            if (content.get("data set", name), content.get("split", split)) != (name, split):
                raise DamageError(f"{file} describes other records")
            fields = {field: (tuple(shape), dtype) for field, (shape, dtype) in content["fields"].items()}
            names, largest = tuple(content.get("class_names", ())), content.get("largest_label")
            texts = tuple(content.get("texts", ()))
            return Description(content["records"], fields, content.get("classes"), None, largest, names, texts=texts)
        except (FileNotFoundError, DamageError, ValueError, TypeError) as error:  # then inspect the records
            note_damage(error)
    description = _inspect(open_records(name, split, folder, path, key))
    if not registered:
        file = _description_file(name, split, folder)  # computed again: the name changes when data are prepared
        with contextlib.suppress(OSError):  # a read-only folder costs time, but must not stop the run
            seal.write(file, {**description._asdict(), "data set": name, "split": split})
    return description


def _description_file(name: str, split: str, folder: Path) -> Path:
    key = f"{FORMAT} {name} {split} {prepared_hash(name, folder)}"
    return folder / "descriptions" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _inspect(records: Records) -> Description:
    """Describe records by reading the first `INSPECTED` of them."""
    index = np.arange(min(INSPECTED, len(records)))
    batch = gather(records, index, np.ones(len(index), np.float32))
    shapes = {field: _shape(column) for field, column in batch.items()}
    fields = {field: shape for field, shape in shapes.items() if shape}
    for field, (shape, _) in fields.items():
        if 0 in shape:
            raise ConfigError("data.name", f"the field {field!r} of the records has no values, {shape}. Leave it out.")
    names, largest = records.class_names, records.largest("label")
    texts = tuple(field for field, column in batch.items() if isinstance(column[0], str | bytes))
    known = records.classes, records.vocabulary, largest, names, records.split_sizes, texts, records.truncated
    return Description(len(records), fields, *known)


def _shape(column: np.ndarray) -> tuple[tuple[int, ...], str] | None:
    """Return the shape and the dtype of one record's array in a field, or None for a field of texts."""
    if column.dtype != object:
        return column.shape[1:], str(column.dtype)
    if not all(isinstance(value, np.ndarray) and value.ndim == column[0].ndim for value in column):
        return None
    sizes = zip(*(value.shape for value in column), strict=True)
    return tuple(size[0] if len(set(size)) == 1 else -1 for size in sizes), str(column[0].dtype)
