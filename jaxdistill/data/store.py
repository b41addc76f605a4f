"""Store a table of arrays on disk, such as cached teacher outputs, as ArrayRecord shards with checksums.

A row of the table holds one array for each field. An interrupted write can be resumed.

    FOLDER/manifest.json            shapes and dtypes of a row's arrays, the number of rows, and metadata of the writer
    FOLDER/<number>.array_record    a shard; renamed into place when complete
    FOLDER/<number>.json            the SHA-256 of the shard, written after it

A shard without its checksum file counts as missing, and is written again.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Fields = Mapping[str, tuple[tuple[int, ...], str]]  # shape and dtype of one row's arrays, by name


class StoreError(RuntimeError):
    """An error in a store (a table of arrays on disk); the message names the file or folder and the problem."""


class Manifest(NamedTuple):
    """The description of a store, which is a table of arrays on disk, written as several files (shards).

    rows: number of rows of the table
    shard: number of rows per shard
    fields: shape and dtype of one row's array in each field, by the name of the field
    about: metadata that the writer adds, such as the hash of the teacher's weights; a reader compares them with the
        metadata that it expects
    """

    rows: int
    shard: int
    fields: dict[str, tuple[tuple[int, ...], str]]
    about: dict[str, Any]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the description of a new store (a table of arrays on disk), or compare it with that of an existing store.

    Raises:
        StoreError: the existing store has another description.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "manifest.json").exists():
        if read_manifest(folder) != manifest:
            raise StoreError(f"{folder} was written with other settings; remove it, or choose another folder")
        return
    _write_atomically(folder / "manifest.json", json.dumps(manifest._asdict()).encode())


def read_manifest(folder: Path) -> Manifest:
    """Read the description of a store, which is a table of arrays on disk.

    Raises:
        StoreError: the folder has no description file, or a damaged one.
    """
    file = folder / "manifest.json"
    try:
        content = json.loads(file.read_text())
        fields = {name: (tuple(shape), dtype) for name, (shape, dtype) in content["fields"].items()}
        return Manifest(content["rows"], content["shard"], fields, content["about"])
    except FileNotFoundError:
        raise StoreError(f"{folder} holds no store") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{file} is damaged ({error})") from None


def missing_shards(folder: Path, manifest: Manifest) -> list[tuple[int, slice]]:
    """Return the shards (files) of a store that are not written yet: pairs (shard number, slice of its rows)."""
    firsts = enumerate(range(0, manifest.rows, manifest.shard))
    shards = [(number, slice(first, min(first + manifest.shard, manifest.rows))) for number, first in firsts]
    return [(number, rows) for number, rows in shards if not _checksum_file(folder, number).exists()]


def _shard_numbers(manifest: Manifest) -> range:
    return range(-(-manifest.rows // manifest.shard))


def write_shard(folder: Path, number: int, columns: Mapping[str, np.ndarray]) -> None:
    """Write one shard (file) of a store, then its checksum; a shard without checksum counts as missing.

    Args:
        folder: folder of the store.
        number: number of the shard, from 0.
        columns: the arrays of the shard's rows, `{field: [rows, ...]}`.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    temporary = folder / f"{number:05d}.{os.getpid()}.tmp"
    writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
    for row in zip(*(columns[name] for name in sorted(columns)), strict=True):
        writer.write(b"".join(np.ascontiguousarray(x).tobytes() for x in row))
    writer.close()
    digest = _sha256(temporary)
    temporary.replace(_shard_file(folder, number))
    _write_atomically(_checksum_file(folder, number), json.dumps({"sha256": digest}).encode())


def _shard_file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.array_record"


def _checksum_file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.json"


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_atomically(file: Path, content: bytes) -> None:
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(file)


def check(folder: Path) -> Manifest:
    """Check that all shards (files) of a store exist and match their checksums; return the description of the store.

    Raises:
        StoreError: a shard is missing or damaged.
    """
    manifest = read_manifest(folder)
    missing, total = missing_shards(folder, manifest), len(_shard_numbers(manifest))
    if missing:
        raise StoreError(f"{folder} is not finished: {total - len(missing)} of {total} shards are written")
    for number in _shard_numbers(manifest):
        file, checksum_file = _shard_file(folder, number), _checksum_file(folder, number)
        expected = json.loads(checksum_file.read_text())["sha256"]
        if not file.is_file() or _sha256(file) != expected:
            raise StoreError(f"{file} is {'damaged' if file.is_file() else 'missing'}; remove {checksum_file}")
    return manifest


class Store:
    """The rows of a store (a table of arrays on disk), accessed by number: `store[i]` is `{field: array}`.

    Args:
        folder: folder of the store.

    Raises:
        StoreError: a shard (file) of the store is missing or damaged.
    """

    def __init__(self, folder: Path):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.manifest = check(folder)
        files = [str(_shard_file(folder, number)) for number in _shard_numbers(self.manifest)]
        self._source = ArrayRecordDataSource(files)

    def __len__(self) -> int:
        return self.manifest.rows

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, np.ndarray]]:
        return [dict(self._decode(data)) for data in self._source.__getitems__(list(rows))]

    def _decode(self, data: bytes) -> Iterator[tuple[str, np.ndarray]]:
        offset = 0
        for name in sorted(self.manifest.fields):
            shape, dtype = self.manifest.fields[name]
            count = int(np.prod(shape))
            yield name, np.frombuffer(data, dtype, count, offset).reshape(shape)
            offset += count * np.dtype(dtype).itemsize


def differences(written: Mapping[str, Any], wanted: Mapping[str, Any], path: str = "") -> list[str]:
    """List the differences between the metadata of a store and the metadata that a reader expects, as texts.

    Args:
        written: metadata of the store, a dict that may be nested.
        wanted: metadata that the reader expects.
        path: text before each key in the result, such as "data." for the nested dict `data`.
    """
    texts = []
    for key in sorted({*written, *wanted}):
        old, new = written.get(key), wanted.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            texts += differences(old, new, f"{path}{key}.")
        elif old != new:
            texts.append(f"{path}{key} was {_shortened(old)}, is {_shortened(new)}")
    return texts


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
