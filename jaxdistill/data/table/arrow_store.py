"""Keep the records of a user's files as Arrow files, which are memory-mapped: any record is read without the others.

FOLDER/<split>.arrow    texts, images, vectors and label codes of one file
FOLDER/table.json       sealed: checksums, shapes of arrays, names of the classes
"""

import contextlib
import mmap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdistill.core import seal
from jaxdistill.core.errors import DamageError

Columns = dict[str, Any]  # the values of a few records: lists, or arrays [records, ...]
MANIFEST = "table.json"
RESIDENT = 2**27  # bytes of a mapped file that may stay in memory


class TableManifest(NamedTuple):
    """The description of a folder of Arrow files, which hold the records of a user's files.

    files: SHA-256 of each Arrow file, by split
    shapes: shape of one record's array, by split and field, for the fields that are arrays
    classes: names of the classes; empty if the records have no labels
    places: for each label code (the number of a label in the files), the number of its class
    """

    files: dict[str, str]
    shapes: dict[str, dict[str, list[int]]]
    classes: list[str]
    places: list[int]


class ArrowFile:
    """The records of one Arrow file, which is memory-mapped.

    Args:
        file: the file.
        shapes: shape of one record's array, by field, for the fields that are arrays.
        places: for each label code (the number of a label in the file), the number of its class.
    """

    def __init__(self, file: Path, shapes: Mapping[str, Sequence[int]], places: Sequence[int]):
        import pyarrow as pa

        self.nbytes = file.stat().st_size
        with file.open("rb") as stream:
            self._mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._reader = pa.ipc.open_file(pa.py_buffer(self._mapped))
        self._touched = 0  # bytes of the file that may be in memory
        self._shapes, self._places = shapes, np.asarray([*places, -1], np.int32)  # code -1: no label
        sizes = [self._reader.get_batch(number).num_rows for number in range(self._reader.num_record_batches)]
        self._ends = np.cumsum(sizes, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def labels(self) -> np.ndarray | None:
        """Return the class number of every record, `[records]` int32, or None if the file has no labels.

        The number is -1 for a record without a label.
        """
        if "label" not in self._reader.schema.names:
            return None
        batches = map(self._reader.get_batch, range(self._reader.num_record_batches))
        codes = [batch.column("label").to_numpy() for batch in batches]
        return self._places[np.concatenate(codes)]

    def take(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """Return the records with the given numbers as a list of dicts, in this order."""
        records: list[dict[str, Any]] = [{} for _ in rows]
        owner = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(owner).tolist():
            batch, places = self._reader.get_batch(number), np.flatnonzero(owner == number)
            self._touched += batch.nbytes
            local = rows[places] - (self._ends[number] - batch.num_rows)
            for name, values in self._columns(batch.take(local)).items():
                for place, value in zip(places.tolist(), values, strict=True):
                    records[place][name] = value
        if self._touched > RESIDENT:  # else a pass over a large file would count as memory of this process
            self._mapped.madvise(mmap.MADV_DONTNEED)
            self._touched = 0
        return records

    def _columns(self, batch: Any) -> Columns:
        columns: Columns = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if name == "label":
                columns[name] = self._places[column.to_numpy()]
            elif name in self._shapes:
                flat = column.flatten().to_numpy()  # of the selected records only
                columns[name] = flat.reshape(len(column), *self._shapes[name])
            else:
                columns[name] = column.to_pylist()
        return columns


def open_tables(folder: Path) -> tuple[TableManifest, dict[str, ArrowFile]]:
    """Open a folder of Arrow files, and return its description and a dict of its files by split.

    Raises:
        FileNotFoundError: there is no such folder.
        DamageError: a file is missing or has changed, or the folder holds the records of other files.
    """
    kinds = {"files": dict, "shapes": dict, "classes": list, "places": list}
    if folder.is_dir() and not (folder / MANIFEST).exists():
        raise DamageError(f"{folder} holds no {MANIFEST}")
    content = seal.read(folder / MANIFEST, kinds, required=True)
    if content.get("key", folder.name) != folder.name:
        raise DamageError(f"{folder} holds the records of other files")
    manifest = TableManifest(**{name: content[name] for name in TableManifest._fields})
    files = {}
    for split, digest in manifest.files.items():
        file = folder / f"{split}.arrow"
        if not file.is_file() or seal.sha256_once(file) != digest:
            raise DamageError(f"{file} is missing, or has changed since it was written")
        files[split] = ArrowFile(file, manifest.shapes[split], manifest.places)
    return manifest, files


def write_file(file: Path, chunks: Iterable[Columns]) -> tuple[int, dict[str, list[int]]]:
    """Write records to an Arrow file.

    Args:
        file: the file.
        chunks: the records, a few at a time, all with the same fields.

    Returns:
        The number of records, and the shape of one record's array for each field that is an array.
    """
    import pyarrow as pa

    count, shapes, writer = 0, {}, None
    with contextlib.ExitStack() as stack:
        for columns in chunks:
            arrays = {name: _arrow(name, values) for name, values in columns.items()}
            batch = pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))
            if writer is None:
                shapes = {n: list(v.shape[1:]) for n, v in columns.items() if isinstance(v, np.ndarray)}
                writer = stack.enter_context(pa.ipc.new_file(str(file), batch.schema))
            writer.write_batch(batch)
            count += batch.num_rows
    return count, shapes


def _arrow(name: str, values: Any) -> Any:
    import pyarrow as pa

    if isinstance(values, np.ndarray):
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))
    if values and isinstance(values[0], bytes):
        return pa.array(values, pa.large_binary())  # images of a chunk may have more than 2^31 bytes
    return pa.array(values, pa.int32() if name == "label" else None)
