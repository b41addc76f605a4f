"""Tokenised once: arrays beside the prepared data, read through memory maps.

A folder is named by all that decides its content (the records, the tokenizer, how it is used), written elsewhere and
renamed when whole, so that several processes may look at once.
"""

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill.core.errors import ConfigError
from jaxdistill.data.records import Records
from jaxdistill.data.text import tokenizer
from jaxdistill.data.text.tokens import Columns, Tokenization

FORMAT = 1  # of what is written; another number makes all folders stale
PIECE = 2048  # texts that are tokenised at once, by all cores


def tokenised(how: Tokenization, source: str, read: Callable[[], Records], folder: Path, title: str) -> Records:
    """The records as arrays, from the folder where they are there already.

    Args:
        how: tokenizer, and what is made of its tokens.
        source: what the records are, so that other records have another folder.
        read: gives the records, if they are needed.
        folder: of prepared data.
        title: for the line that announces long work.

    Raises:
        ConfigError: no such tokenizer, no such text, or a damaged folder.
    """
    sha = words(how)
    key = hashlib.sha256(json.dumps([FORMAT, source, sha, how.spec]).encode()).hexdigest()[:16]
    home = folder / "tokens" / key
    if home.is_dir():
        return _opened(home)
    records, loaded = read(), tokenizer.load(how.file)
    found = how.encode(loaded, _pieces(records, f"Tokenising {title} with {how.file}; this happens once.\n"))
    about: dict[str, Any] = {
        "source": source,
        "tokenizer": str(how.file),
        "sha256": sha,
        "spec": how.spec,
        "texts": len(records),
        "cut": found.cut,
        "tokens": found.tokens,
        "classes": records.classes if how.labelled else None,  # a next token is one of the vocabulary
        "vocabulary": tokenizer.vocabulary(loaded),
    }
    try:
        _write(home, found.columns, about)
    except OSError:  # a folder that cannot be written costs time, not the run
        return Records(found.columns, about["classes"], about["vocabulary"])
    return _opened(home)


def words(how: Tokenization) -> str:
    """Tells one set of tokenizers from another, whatever their files are called."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in (how.file, *how.others.values()))).hexdigest()


def fingerprint(records: Records) -> str:
    """A number of all that the records hold, for sets whose name does not say it."""
    digest = hashlib.sha256()
    for piece in _pieces(records, ""):
        for field, column in sorted(piece.items()):
            digest.update(f"{field} {column.dtype} {column.shape}".encode())
            digest.update(repr(column.tolist()).encode() if column.dtype == object else column.tobytes())
    return digest.hexdigest()


def _pieces(records: Records, message: str) -> Iterator[Columns]:
    """The records by pieces; where the first one shows that all will take seconds, a line says so on stderr."""
    start = time.perf_counter()
    edges = [*range(0, len(records), PIECE), len(records)]
    for count, (first, last) in enumerate(pairwise(edges)):
        if count == 1 and (time.perf_counter() - start) * len(edges) > 3:
            sys.stderr.write(message)
        yield records.take(np.arange(first, last))


def _write(home: Path, columns: Columns, about: dict[str, Any]) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as draft:
        whole = Path(draft, "whole")
        whole.mkdir()
        for field, column in columns.items():
            file = whole / f"{field}.npy"
            file.parent.mkdir(exist_ok=True)  # of teacher/input_ids
            np.save(file, column, allow_pickle=False)
        (whole / "manifest.json").write_text(json.dumps({**about, "fields": list(columns)}, indent=1))
        try:
            os.rename(whole, home)
        except OSError:
            if not home.is_dir():  # another process was not faster
                raise


def _opened(home: Path) -> Records:
    try:
        about = json.loads((home / "manifest.json").read_text())
        columns = {field: np.load(home / f"{field}.npy", mmap_mode="r") for field in about["fields"]}
        return Records(columns, about["classes"], about["vocabulary"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(tokenizer.PATH, f"{home} is damaged ({error}); delete it, and it is made again.") from None
