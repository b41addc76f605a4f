"""A cache of tokenised texts: arrays next to the prepared data, read as memory maps.

The name of a cache folder is a hash of all that determines its content: the records, the tokenizer and its settings.
A folder is written elsewhere and renamed when complete, so that several processes may use it at once.
"""

import contextlib
import errno
import hashlib
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill.core import seal
from jaxdistill.core.atomic import new_folder, remove_folder
from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.core.memory import free_disk, host_memory, require
from jaxdistill.core.notes import note
from jaxdistill.data.progress import progress
from jaxdistill.data.records import Records
from jaxdistill.data.text import tokenizer
from jaxdistill.data.text.tokens import Columns, Tokenization, Tokenized, joined

FORMAT = 3  # version of the cache format; a new number invalidates all folders
CHUNK = 2048  # texts that are tokenised at once, on all cores
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)  # a folder that cannot be written


def tokenise(
    tokenization: Tokenization, source: str, open_records: Callable[[], Records], folder: Path, title: str
) -> Records:
    """Return the examples of a data set with tokenised texts, from the cache on disk if it has them.

    Otherwise, tokenise the texts and add them to the cache. If the cache cannot be written, keep the tokens in memory.

    Args:
        tokenization: the tokenizer and its settings.
        source: text that identifies the data set and its split in the key of the cache.
        open_records: function that opens the untokenised examples; called only if the cache does not have them.
        folder: folder of prepared data sets; the cache is in `folder/tokens`.
        title: name of the data set in the message that announces a long tokenisation.

    Raises:
        ConfigError: the tokenizer or the text field does not exist.
    """
    sha = tokenizer_hash(tokenization)
    key = hashlib.sha256(json.dumps([FORMAT, source, sha, tokenization.spec]).encode()).hexdigest()[:16]
    cache = folder / "tokens" / key
    wanted = {"source": source, "sha256": sha, "spec": tokenization.spec}
    if cache.exists() or cache.is_symlink():
        try:
            return _open_cache(cache, wanted)
        except DamageError as error:
            note(f"{error}; tokenising the texts again")
            remove_folder(cache)
    records, loaded = open_records(), tokenizer.load(tokenization.file)
    message = f"Tokenising {title} with {tokenization.file}; this happens once.\n"
    about: dict[str, Any] = {
        **wanted,
        "tokenizer": str(tokenization.file),
        "texts": len(records),
        # a language model has a class for each token instead
        "classes": records.classes if tokenization.labelled else None,
        "class_names": records.class_names if tokenization.labelled else (),
        "split_sizes": records.split_sizes,
        "truncates": tokenization.labelled,  # documents are spread over rows instead
        "vocabulary": tokenizer.vocabulary_size(loaded),
    }
    for kind, texts, available in (
        ("memory", min(CHUNK, len(records)), host_memory()),
        ("disk space", len(records), free_disk(cache.parent)),
    ):
        arrays = {f"the tokens of {texts} texts": (tokenizer.PATH, texts * tokenization.row_bytes)}
        require(arrays, available, "Choose a smaller length, or fewer records", kind)
    chunks = -(-len(records) // CHUNK)
    parts = lambda: tokenization.encode(loaded, progress(_chunks(records, message), f"Tokenising {title}", chunks))
    try:
        cut = _write_cache(cache, parts(), about)
        if cut and tokenization.labelled:
            note(f"{cut:,} of {len(records):,} texts of {title} are longer than a row (length in data.tokens)")
        return _open_cache(cache, wanted)
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
    # a folder that cannot be written costs time and memory, but must not stop the run
    arrays = {f"the tokens of {len(records)} texts": (tokenizer.PATH, len(records) * tokenization.row_bytes)}
    require(arrays, host_memory(), f"Let this user write to {folder}, or choose fewer records", "memory")
    whole = joined(parts())
    return _records(whole.columns, {**about, "cut": whole.too_long})


def tokenizer_hash(tokenization: Tokenization) -> str:
    """Return a hash of the contents of the student's and the teachers' tokenizer files; file names do not matter."""
    files = (tokenization.file, *tokenization.others.values())
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def fingerprint(records: Records) -> str:
    """Return a hash of the content of all examples of a split, as hexadecimal text.

    It is needed for data sets that are made by code, because this code may change.
    """
    digest = hashlib.sha256()
    for chunk in _chunks(records, ""):
        for field, column in sorted(chunk.items()):
            digest.update(f"{field} {column.dtype} {column.shape}".encode())
            digest.update(_content(column))
    return digest.hexdigest()


def _content(column: np.ndarray) -> bytes:
    """Return all values of one field (a column of the records) as bytes, for a hash."""
    if column.dtype != object:
        return column.tobytes()
    if not any(isinstance(value, np.ndarray) for value in column):
        return repr(column.tolist()).encode()
    arrays = map(np.asarray, column)  # of several shapes; the text of a large array would leave values out
    return b"".join(f"{x.dtype} {x.shape} ".encode() + np.ascontiguousarray(x).tobytes() for x in arrays)


def _chunks(records: Records, message: str) -> Iterator[Columns]:
    """Yield the records in chunks of `CHUNK`, each a dict of arrays `{field: [records, ...]}`.

    Write `message` to stderr if the first chunk was so slow that all chunks together will take more than 3 seconds.
    """
    start = time.perf_counter()
    edges = [*range(0, len(records), CHUNK), len(records)]
    for count, (first, last) in enumerate(pairwise(edges)):
        if count == 1 and (time.perf_counter() - start) * len(edges) > 3:
            sys.stderr.write(message)
        yield records.take(np.arange(first, last))


def _write_cache(cache: Path, parts: Iterator[Tokenized], about: dict[str, Any]) -> int:
    """Write tokenised texts to a cache folder, and return how many of them are too long; see `Tokenized.too_long`.

    The texts are written part by part, so that they need not fit into memory.
    """
    counts = {"tokens": 0, "cut": 0}
    with new_folder(cache) as draft:
        with contextlib.ExitStack() as stack:
            files: dict[str, ArrayFile] = {}
            for part in parts:
                for field, column in part.columns.items():
                    if field not in files:
                        (draft / f"{field}.npy").parent.mkdir(exist_ok=True)  # for fields such as teacher/input_ids
                        files[field] = stack.enter_context(ArrayFile(draft / f"{field}.npy"))
                    files[field].append(column)
                counts = {"tokens": counts["tokens"] + part.tokens, "cut": counts["cut"] + part.too_long}
        digests = {field: seal.sha256(draft / f"{field}.npy") for field in files}
        seal.write(draft / "manifest.json", {**about, **counts, "fields": list(files), "files": digests})
    return counts["cut"]


class ArrayFile:
    """A `.npy` file to which rows are appended; the number of rows is written into its header when it is closed.

    Args:
        file: path of the file.
    """

    def __init__(self, file: Path):
        self._stream, self._rows, self._path = file.open("wb"), 0, f"the field {file.stem!r}"
        self._like: np.ndarray | None = None

    def __enter__(self) -> "ArrayFile":
        return self

    def append(self, rows: np.ndarray) -> None:
        """Append an array of rows, `[rows, ...]`, to the file.

        Raises:
            ConfigError: the shape of a row, or the dtype, differs from that of the first rows.
        """
        if self._like is None:
            self._like = rows[:0]
            self._stream.write(self._heading(0))
        if (rows.shape[1:], rows.dtype) != (self._like.shape[1:], self._like.dtype):
            expected = f"{list(self._like.shape[1:])} {self._like.dtype}"
            raise ConfigError(self._path, f"a later record has {list(rows.shape[1:])} {rows.dtype}, not {expected}.")
        self._stream.write(np.ascontiguousarray(rows).tobytes())
        self._rows += len(rows)

    def _heading(self, rows: int) -> bytes:
        """Return the `.npy` header for a number of rows; its size does not depend on this number."""
        assert self._like is not None
        about = {"descr": np.lib.format.dtype_to_descr(self._like.dtype), "fortran_order": False}
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, {**about, "shape": (rows, *self._like.shape[1:])})
        return buffer.getvalue()

    def __exit__(self, *error: object) -> None:
        if self._like is not None:
            self._stream.seek(0)
            self._stream.write(self._heading(self._rows))
        self._stream.close()


def _open_cache(cache: Path, wanted: Mapping[str, Any]) -> Records:
    """Open a cache folder of tokenised texts as records whose arrays are memory-mapped.

    Args:
        cache: the folder.
        wanted: entries that its manifest.json must have: source of the texts, hash of the tokenizer files, settings.

    Raises:
        DamageError: a file is missing or has changed, or the manifest.json has other entries.
    """
    try:
        about = seal.read(cache / "manifest.json", {"fields": list, "vocabulary": int, "files": dict}, required=True)
        if other := [key for key, value in wanted.items() if about.get(key) != value]:
            raise DamageError(f"{cache} holds other tokens ({', '.join(other)} differs)")
        for field, digest in about["files"].items():
            if seal.sha256(cache / f"{field}.npy") != digest:
                raise DamageError(f"{cache / field}.npy has changed since it was written (checksum differs)")
        columns = {field: np.load(cache / f"{field}.npy", mmap_mode="r") for field in about["fields"]}
        return _records(columns, about)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, EOFError) as error:
        raise DamageError(f"{cache} is damaged ({error})") from None


def _records(columns: Columns, about: dict[str, Any]) -> Records:
    names, sizes = about["class_names"], about["split_sizes"]
    cut = about["cut"] if about["truncates"] else 0
    known = {"class_names": names, "split_sizes": sizes, "truncated": cut}
    return Records(columns, about["classes"], about["vocabulary"], **known)
