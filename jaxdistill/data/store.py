"""Arrays of many rows on disk: ArrayRecord shards, each with its checksum, written once and resumed where it stopped.

    FOLDER/manifest.json            the layout of a row, how many there are, whatever the writer wants to remember
    FOLDER/<number>.array_record    a shard; renamed into place when whole
    FOLDER/<number>.json            its SHA-256, written after it

What was cut short is begun again at the first shard that is not sealed.
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
    """A store that cannot be used; the message names the file and what is wrong with it."""


class Manifest(NamedTuple):
    """What a store holds.

    rows: how many
    shard: how many to a shard
    fields: shape and dtype of one row's arrays
    about: what the writer says of them; a reader compares it with what it needs
    """

    rows: int
    shard: int
    fields: dict[str, tuple[tuple[int, ...], str]]
    about: dict[str, Any]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Begins a store, or goes on with one of the same manifest.

    Raises:
        StoreError: there is one with another manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "manifest.json").exists():
        if read_manifest(folder) != manifest:
            raise StoreError(f"{folder} was begun with other settings; remove it, or choose another folder")
        return
    _write(folder / "manifest.json", json.dumps(manifest._asdict()).encode())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a store.

    Raises:
        StoreError: there is none, or it is damaged.
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


def missing(folder: Path, manifest: Manifest) -> list[tuple[int, slice]]:
    """The shards that are not written yet: (number, its rows)."""
    firsts = enumerate(range(0, manifest.rows, manifest.shard))
    shards = [(number, slice(first, min(first + manifest.shard, manifest.rows))) for number, first in firsts]
    return [(number, part) for number, part in shards if not _seal(folder, number).exists()]


def _shards(manifest: Manifest) -> range:
    return range(-(-manifest.rows // manifest.shard))


def write_shard(folder: Path, number: int, columns: Mapping[str, np.ndarray]) -> None:
    """Writes one shard: it is there whole, with its checksum, or not at all."""
    from array_record.python.array_record_module import ArrayRecordWriter

    half = folder / f"{number:05d}.{os.getpid()}.tmp"
    writer = ArrayRecordWriter(str(half), "group_size:1,uncompressed")
    for row in zip(*(columns[name] for name in sorted(columns)), strict=True):
        writer.write(b"".join(np.ascontiguousarray(x).tobytes() for x in row))
    writer.close()
    digest = _digest(half)
    half.replace(_shard(folder, number))
    _write(_seal(folder, number), json.dumps({"sha256": digest}).encode())


def _shard(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.array_record"


def _seal(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.json"


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write(file: Path, content: bytes) -> None:
    half = file.with_suffix(f".{os.getpid()}.tmp")
    half.write_bytes(content)
    half.replace(file)


def check(folder: Path) -> Manifest:
    """Everything is there and as it was written; returns the manifest.

    Raises:
        StoreError: naming the shard that is missing or damaged.
    """
    manifest = read_manifest(folder)
    left, total = missing(folder, manifest), len(_shards(manifest))
    if left:
        raise StoreError(f"{folder} is not finished: {total - len(left)} of {total} shards are written")
    for number in _shards(manifest):
        file = _shard(folder, number)
        wanted = json.loads(_seal(folder, number).read_text())["sha256"]
        if not file.is_file() or _digest(file) != wanted:
            raise StoreError(f"{file} is {'damaged' if file.is_file() else 'missing'}; remove {_seal(folder, number)}")
    return manifest


class Store:
    """The rows of a store, by number.

    Raises:
        StoreError: as `check`.
    """

    def __init__(self, folder: Path):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.manifest = check(folder)
        self._source = ArrayRecordDataSource([str(_shard(folder, number)) for number in _shards(self.manifest)])

    def __len__(self) -> int:
        return self.manifest.rows

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, np.ndarray]]:
        return [dict(self._parts(data)) for data in self._source.__getitems__(list(rows))]

    def _parts(self, data: bytes) -> Iterator[tuple[str, np.ndarray]]:
        first = 0
        for name in sorted(self.manifest.fields):
            shape, dtype = self.manifest.fields[name]
            count = int(np.prod(shape))
            yield name, np.frombuffer(data, dtype, count, first).reshape(shape)
            first += count * np.dtype(dtype).itemsize


def differences(written: Mapping[str, Any], wanted: Mapping[str, Any], path: str = "") -> list[str]:
    """Where what a store remembers differs from what is wanted, in words."""
    found = []
    for key in sorted({*written, *wanted}):
        a, b = written.get(key), wanted.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{path}{key}.")
        elif a != b:
            found.append(f"{path}{key} was {_short(a)}, is {_short(b)}")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
