"""Store a table of arrays on disk, such as cached teacher outputs, as ArrayRecord shards with checksums.

A row of the table holds one array for each field. An interrupted write can be resumed.

    FOLDER/manifest.json            shapes and dtypes of a row's arrays, the number of rows, and metadata of the writer
    FOLDER/<number>.array_record    a shard; renamed into place when complete
    FOLDER/<number>.json            the seal of the shard, written after it: its SHA-256, its number, and its store

A shard without its seal counts as missing, and is written again.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdistill.core import seal
from jaxdistill.core.atomic import new_file
from jaxdistill.core.errors import DamageError
from jaxdistill.core.notes import note_damage

Fields = Mapping[str, tuple[tuple[int, ...], str]]  # shape and dtype of one row's arrays, by name


class StoreError(RuntimeError):
    """The error for a store (a table of arrays on disk) that is missing, unfinished, or written with other settings."""


class StoreManifest(NamedTuple):
    """The description of a store, which is a table of arrays on disk, written as several files (shards).

    rows: number of rows of the table
    shard: number of rows per shard
    fields: shape and dtype of one row's array in each field, by the name of the field
    about: metadata that the writer adds; its entry `identity`, such as the hash of the teacher's weights, tells stores
        apart: a reader compares it with the identity that it expects, and a shard is sealed with it
    """

    rows: int
    shard: int
    fields: dict[str, tuple[tuple[int, ...], str]]
    about: dict[str, Any]


MANIFEST = "manifest.json"
MOST_SHARDS = 2**20  # files of one store


def write_manifest(folder: Path, manifest: StoreManifest) -> None:
    """Write the description (manifest.json) of a new store, or check that an existing store has the same description.

    A store is a table of arrays on disk. A damaged description is written again.

    Raises:
        StoreError: the existing store has another description.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if read_manifest(folder) == manifest:
            return
    except (StoreError, DamageError) as error:
        note_damage(error)
        seal.write(folder / MANIFEST, manifest._asdict())
        return
    raise StoreError(f"{folder} was written with other settings; remove it, or choose another folder")


def read_manifest(folder: Path) -> StoreManifest:
    """Read the description of a store, which is a table of arrays on disk.

    Raises:
        StoreError: the folder has no description file.
        DamageError: the description file is damaged.
    """
    file = folder / MANIFEST
    try:
        content = seal.read(file, {"rows": int, "shard": int, "fields": dict, "about": dict})
        if not (0 <= content["rows"] <= MOST_SHARDS * content["shard"] and content["shard"] >= 1):
            raise ValueError(f"{content['rows']} rows in shards of {content['shard']}")
        fields = {name: (tuple(shape), np.dtype(dtype).name) for name, (shape, dtype) in content["fields"].items()}
    except FileNotFoundError:
        raise StoreError(f"{folder} has no cached outputs") from None
    except (ValueError, TypeError) as error:
        raise DamageError(f"{file} is damaged ({error})") from None
    return StoreManifest(content["rows"], content["shard"], fields, content["about"])


def missing_shards(folder: Path, manifest: StoreManifest) -> list[tuple[int, slice]]:
    """Return the missing shards (files) of a store, as a list of pairs (shard number, slice of rows)."""
    return [(number, rows) for number, rows in _shards(manifest) if not _seal_file(folder, number).exists()]


def damaged_shards(folder: Path, manifest: StoreManifest) -> list[tuple[int, slice]]:
    """Return the damaged shards (files) of a store, as a list of pairs (shard number, slice of rows)."""
    return [(number, rows) for number, rows in _shards(manifest) if _damage(folder, manifest, number)]


def _shards(manifest: StoreManifest) -> list[tuple[int, slice]]:
    firsts = enumerate(range(0, manifest.rows, manifest.shard))
    return [(number, slice(first, min(first + manifest.shard, manifest.rows))) for number, first in firsts]


def write_shard(folder: Path, manifest: StoreManifest, number: int, columns: Mapping[str, np.ndarray]) -> None:
    """Write one shard (file) of a store, and then its seal (a file with its checksum).

    A shard without a seal counts as missing.

    Args:
        folder: folder of the store.
        manifest: description of the store.
        number: number of the shard, from 0.
        columns: the arrays of the shard's rows, `{field: [rows, ...]}`.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    with new_file(_shard_file(folder, number)) as draft:
        with contextlib.closing(ArrayRecordWriter(str(draft), "group_size:1,uncompressed")) as writer:
            for row in zip(*(columns[name] for name in sorted(columns)), strict=True):
                writer.write(b"".join(np.ascontiguousarray(x).tobytes() for x in row))
        _seal_file(folder, number).unlink(missing_ok=True)  # the seal of a damaged shard, which is replaced
    seal.seal_file(_shard_file(folder, number), _about_shard(manifest, number))


def _about_shard(manifest: StoreManifest, number: int) -> dict[str, Any]:
    """Return a dict that identifies a shard in its seal: its number, and a hash of its store's shapes and identity."""
    content = [manifest.rows, manifest.shard, manifest.fields, manifest.about.get("identity")]
    store = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {"shard": number, "store": store}


def _shard_file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.array_record"


def _seal_file(folder: Path, number: int) -> Path:
    return _shard_file(folder, number).with_suffix(".json")


def _damage(folder: Path, manifest: StoreManifest, number: int) -> DamageError | None:
    try:
        seal.check_file(_shard_file(folder, number), _about_shard(manifest, number))
    except FileNotFoundError:
        return None  # it is not written yet
    except DamageError as error:
        return error
    return None


def verify_store(folder: Path) -> StoreManifest:
    """Require that all shards (files) of a store exist and match their seals; return the description of the store.

    Raises:
        StoreError: a shard is not written yet.
        DamageError: a shard or the description is damaged.
    """
    manifest = read_manifest(folder)
    missing, every = missing_shards(folder, manifest), _shards(manifest)
    if missing:
        raise StoreError(f"{folder} is not finished: {len(every) - len(missing)} of {len(every)} shards are written")
    for number, _ in every:
        if damage := _damage(folder, manifest, number):
            raise damage
    return manifest


class Store:
    """The rows of a store (a table of arrays on disk), accessed by number: `store[i]` is `{field: array}`.

    Args:
        folder: folder of the store.

    Raises:
        StoreError: a shard (file) of the store is not written yet.
        DamageError: a shard or the description of the store is damaged.
    """

    def __init__(self, folder: Path):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.manifest = verify_store(folder)
        files = [str(_shard_file(folder, number)) for number, _ in _shards(self.manifest)]
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
            texts.append(f"{path}{key} was {_shortened(old, new)}, is {_shortened(new, old)}")
    return texts


def _shortened(value: Any, other: Any) -> str:
    """Return the repr of a value; a long one is cut around the first character that differs from that of `other`."""
    text = repr(value)
    same = next((n for n, (a, b) in enumerate(zip(text, repr(other), strict=False)) if a != b), 0)
    first = max(0, same - 20)
    return text if len(text) < 60 else f"{'...' * (first > 0)}{text[first : first + 57]}..."
