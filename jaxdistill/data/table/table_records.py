"""The records of a split of a user's own files, read from the Arrow files that `dataset.py` has written."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill.data.table import images
from jaxdistill.data.table.arrow_store import ArrowFile


class TableRecords:
    """A split of a user's own files, as a sequence of records.

    A record is a dict with texts, an image or numbers, and the class number in the field `label`.

    Args:
        parts: pairs of an Arrow file and the numbers of its records that belong to the split, in order.
        classes: names of the classes; empty if the data have no labels.
        labelled: if true, the records have the field `label`.
        fingerprint: text that changes if the records change.
        base: folder that relative paths of images start from.
        channels: channels of decoded images.
        split_sizes: number of records in each split, by name.
    """

    def __init__(
        self,
        parts: Sequence[tuple[ArrowFile, np.ndarray]],
        classes: Sequence[str],
        labelled: bool,
        fingerprint: str,
        base: Path,
        channels: int,
        split_sizes: Mapping[str, int],
    ):
        self._parts, self._labelled, self._base, self._channels = tuple(parts), labelled, base, channels
        self._ends = np.cumsum([len(rows) for _, rows in parts])
        self.class_names = tuple(classes)
        self.classes = len(classes) or None
        self.fingerprint, self.split_sizes = fingerprint, dict(split_sizes)
        self.nbytes = sum(file.nbytes * len(rows) // max(1, len(file)) for file, rows in parts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return self.__getitems__([number % len(self)])[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[number] for number in range(len(self)))

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Return the records with the given numbers as a list of dicts, in this order."""
        wanted = np.asarray(numbers)
        records: list[dict[str, Any]] = [{} for _ in numbers]
        owner = np.searchsorted(self._ends, wanted, side="right")
        for number in np.unique(owner).tolist():
            (file, rows), places = self._parts[number], np.flatnonzero(owner == number)
            local = wanted[places] - (self._ends[number] - len(rows))
            for place, record in zip(places.tolist(), file.take(rows[local]), strict=True):
                records[place] = self._record(record)
        return records

    def _record(self, record: dict[str, Any]) -> dict[str, Any]:
        if not self._labelled:
            record.pop("label", None)
        image = record.get("image")
        if isinstance(image, str):
            record["image"] = images.decode(str(self._base / Path(image).expanduser()), self._channels)
        elif isinstance(image, bytes):
            record["image"] = images.decode(image, self._channels)
        return record
