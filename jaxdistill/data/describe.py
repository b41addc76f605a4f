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

from jaxdistill.data.datasets import open_records
from jaxdistill.data.records import Records
from jaxdistill.data.stream import gather
from jaxdistill.registry import datasets


class Description(NamedTuple):
    """A split at a glance.

    records: how many
    fields: shape and dtype of one record's arrays, by name
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
    note = folder / "descriptions" / f"{hashlib.sha256(f'{name} {split}'.encode()).hexdigest()[:16]}.json"
    if not registered:
        with contextlib.suppress(OSError, ValueError, KeyError):  # no note, or half of one: look again
            content = json.loads(note.read_text())
            fields = {field: (tuple(shape), dtype) for field, (shape, dtype) in content["fields"].items()}
            return Description(content["records"], fields, content["classes"], None)
    found = _look(open_records(name, split, folder, path, key))
    if not registered:
        with contextlib.suppress(OSError):  # a folder that cannot be written costs time, not the run
            note.parent.mkdir(parents=True, exist_ok=True)
            half = note.with_suffix(f".{os.getpid()}")  # renamed when whole: several processes may look at once
            half.write_text(json.dumps({**found._asdict(), "data set": name, "split": split}))
            half.replace(note)
    return found


def _look(records: Records) -> Description:
    one = gather(records, np.zeros(1, np.int64), np.ones(1, np.float32))
    fields = {field: (value.shape[1:], str(value.dtype)) for field, value in one.items() if value.dtype != object}
    return Description(len(records), fields, records.classes, records.vocabulary)
