"""Which records a run learns from, and when: its config's `data.select` and `data.order`, checked without reading."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdistill.core.checkpoint import write_json
from jaxdistill.core.errors import ConfigError
from jaxdistill.data.pipeline import Pipeline
from jaxdistill.data.records import Records
from jaxdistill.data.selection import Selection, hard_by
from jaxdistill.data.store import Store, StoreError
from jaxdistill.data.stream import Phases
from jaxdistill.teachers.codec import decode

PATH, ORDER = "data.select", "data.order"
PIECE = 2**23  # logits that are looked at at once


def chosen(data: Pipeline, records: Records) -> np.ndarray | Phases | None:
    """The numbers of the records that a run learns from, rising, or phases of them; None for all.

    Args:
        data: of the run.
        records: of its stream `train`.

    Raises:
        ConfigError: a cache is damaged, or says nothing of a record; or a phase has no records.
    """
    numbers, order = _selected(data, records), data.ordering
    if order is None:
        return numbers
    every = np.arange(len(records))
    try:
        return order.phases(records.take(every)[order.field], every if numbers is None else numbers)
    except ValueError as error:
        raise ConfigError(ORDER, f"{data.order!r}: {error}.") from None


def _selected(data: Pipeline, records: Records) -> np.ndarray | None:
    selection = data.selection
    if selection is None:
        return None
    return selection.chosen(data.seed, len(records), _hard(selection, records) if selection.caches else None)


def _hard(selection: Selection, records: Records) -> np.ndarray:
    try:
        stores = [Store(Path(folder).expanduser() / "train") for folder in selection.caches]
    except StoreError as error:
        raise ConfigError(PATH, f"{error}, and write it again.") from None
    size = max(1, PIECE // _numbers(stores[0]))
    pieces = [np.arange(first, min(first + size, len(records))) for first in range(0, len(records), size)]
    found = np.concatenate([_of(selection, stores, records, piece) for piece in pieces])
    if np.isnan(found).any():
        where = f"by={selection.by!r} is not a number for record {int(np.flatnonzero(np.isnan(found))[0])}"
        raise ConfigError(PATH, f"{where}: it has no label, or its teacher is broken. Choose another cache, or by.")
    return found


def _numbers(store: Store) -> int:
    """How many logits a record has, over all tokens."""
    fields = store.manifest.fields
    positions = fields["logits"][0][:-1] if "logits" in fields else fields["tail"][0]
    return int(np.prod(positions)) * store.manifest.about["classes"]


def _of(selection: Selection, stores: list[Store], records: Records, piece: np.ndarray) -> np.ndarray:
    logits = np.stack([_logits(store, piece) for store in stores])
    some = records.take(piece)
    return hard_by(selection.by, logits, some.get("label"), some.get("mask"))


def _logits(store: Store, piece: np.ndarray) -> np.ndarray:
    rows = store.__getitems__(piece.tolist())
    written: Any = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return np.asarray(decode(written, store.manifest.about["classes"], 0).dense().logits)


def hold(workdir: Path, data: Pipeline, found: np.ndarray | Phases | None) -> None:
    """Notes in a workdir which records its run learns from; a run that goes on must find the same.

    Raises:
        ConfigError: it finds others, since a cache was written anew.
    """
    if found is None:
        return
    numbers = np.concatenate(found.pools) if isinstance(found, Phases) else found
    file = workdir / "selection.json"
    said = {
        "select": data.select,
        "records": len(numbers),
        "sha256": hashlib.sha256(numbers.astype(np.int64).tobytes()).hexdigest(),
    }
    if file.is_file() and json.loads(file.read_text()) != said:
        cure = "Choose another --workdir, or bring back the cache that it began with"
        why = f"{str(workdir)!r} began with other records than {data.select!r} gives now"
        raise ConfigError(PATH, f"{why}. {cure}.")
    if jax.process_index() == 0:
        write_json(file, said)
