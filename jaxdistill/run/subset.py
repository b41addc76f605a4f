"""Select and order the training records of a run: the config keys `data.select` and `data.order`."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.core.notes import note
from jaxdistill.data.pipeline import Pipeline
from jaxdistill.data.records import Records
from jaxdistill.data.selection import Selection, record_hardness
from jaxdistill.data.store import Store, StoreError
from jaxdistill.data.stream import Phases
from jaxdistill.run import workdir as workdirs
from jaxdistill.teachers.codec import decode

PATH, ORDER = "data.select", "data.order"
CHUNK_LOGITS = 2**23  # number of cached logits that are read at once


def choose_records(data: Pipeline, records: Records) -> np.ndarray | Phases | None:
    """Choose the training records (examples) of a run by the config keys `data.select` and `data.order`.

    Args:
        data: data pipeline of the run.
        records: all training records.

    Returns:
        The numbers of the chosen records in rising order, `[chosen]`, or None for all records. If `data.order` is set,
        `Phases` with one such array for each phase of the run, such as tasks that follow each other.

    Raises:
        ConfigError: a cache is damaged or lacks a record, or a phase has no records.
    """
    indices, order = _selected(data, records), data.ordering
    if order is None:
        return indices
    all_indices = np.arange(len(records))
    try:
        return order.phases(records.take(all_indices)[order.field], all_indices if indices is None else indices)
    except ValueError as error:
        raise ConfigError(ORDER, f"{data.order!r}: {error}.") from None


def _selected(data: Pipeline, records: Records) -> np.ndarray | None:
    selection = data.selection
    if selection is None:
        return None
    return selection.chosen(data.seed, len(records), _hardness(selection, records) if selection.caches else None)


def _hardness(selection: Selection, records: Records) -> np.ndarray:
    try:
        stores = [Store(Path(folder).expanduser() / "train") for folder in selection.caches]
    except StoreError as error:
        raise ConfigError(PATH, f"{error}. Write the cache again: jaxdistill cache --config ...") from None
    size = max(1, CHUNK_LOGITS // _logits_per_record(stores[0]))
    chunks = [np.arange(first, min(first + size, len(records))) for first in range(0, len(records), size)]
    hardness = np.concatenate([_chunk_hardness(selection, stores, records, chunk) for chunk in chunks])
    if np.isnan(hardness).any():
        reason = f"by={selection.by!r} is NaN for record {int(np.flatnonzero(np.isnan(hardness))[0])}"
        cure = "The record has no label, or the cached outputs are NaN. Choose another cache, or another by"
        raise ConfigError(PATH, f"{reason}. {cure}.")
    return hardness


def _logits_per_record(store: Store) -> int:
    """Return the number of logits that a teacher has for one record: classes, times tokens for a text."""
    fields = store.manifest.fields
    positions = fields["logits"][0][:-1] if "logits" in fields else fields["tail"][0]
    return int(np.prod(positions)) * store.manifest.about["classes"]


def _chunk_hardness(selection: Selection, stores: list[Store], records: Records, chunk: np.ndarray) -> np.ndarray:
    logits = np.stack([_logits(store, chunk) for store in stores])
    batch = records.take(chunk)
    return record_hardness(selection.by, logits, batch.get("label"), batch.get("mask"))


def _logits(store: Store, chunk: np.ndarray) -> np.ndarray:
    rows = store.__getitems__(chunk.tolist())
    encoded: Any = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return np.asarray(decode(encoded, store.manifest.about["classes"], 0).dense().logits)


def check_selection(workdir: Path, data: Pipeline, selected: np.ndarray | Phases | None) -> dict[Path, Any]:
    """Require that a resumed run trains on the same records (examples) as before it was interrupted.

    A new run keeps a hash of the record numbers in `selection.json`, and a resumed run compares it with its own hash.

    Args:
        workdir: folder of the run.
        data: data pipeline of the run.
        selected: the record numbers, from `choose_records`. None means that all records are used, and nothing is
            checked.

    Returns:
        `{path: content}` of the sealed (checksummed) JSON file, which the caller writes once all other checks have
        passed; {} if `selected` is None.

    Raises:
        ConfigError: the records differ, because a cache of teacher outputs that selects them was rewritten.
    """
    if selected is None:
        return {}
    indices = np.concatenate(selected.pools) if isinstance(selected, Phases) else selected
    file = workdir / "selection.json"
    summary = {
        "select": data.select,
        "records": len(indices),
        "sha256": hashlib.sha256(indices.astype(np.int64).tobytes()).hexdigest(),
    }
    try:
        known = seal.read(file, {"sha256": str})
    except (FileNotFoundError, DamageError) as error:
        known = summary
        if any(workdir.glob("**/checkpoints/manifests/*.json")):
            state = "is missing" if isinstance(error, FileNotFoundError) else "is damaged"
            note(f"{file} {state}: it cannot be checked whether the run began with these records")
    workdirs.require_one_run(workdir, file.name, known)
    if {**known, "run": ""} != {**summary, "run": ""}:
        cure = "Choose another --workdir, or restore the cache that the run started with"
        problem = f"{data.select!r} no longer selects the records that the run in {str(workdir)!r} started with"
        raise ConfigError(PATH, f"{problem}. {cure}.")
    return {file: summary}
