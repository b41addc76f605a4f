"""Which records a run learns from, and when: its config's `data.select` and `data.order`, checked without reading."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxdistill import cached, sources
from jaxdistill.cached import UNCHANGED
from jaxdistill.checkpoint import write_json
from jaxdistill.data.describe import Description
from jaxdistill.data.records import Records
from jaxdistill.data.selections import Selection, hard_by
from jaxdistill.data.store import Manifest, Store, StoreError, read_manifest
from jaxdistill.data.stream import Phases
from jaxdistill.errors import ConfigError
from jaxdistill.models.cached import decode

PATH, ORDER = "data.select", "data.order"
PIECE = 2**23  # logits that are looked at at once


def check(config: ConfigDict, described: Description) -> None:
    """What a selection needs is there.

    Args:
        config: of a run.
        described: its training records.

    Raises:
        ConfigError: a cache is missing, of other data, of augmented rows or of other classes; or there are no labels.
    """
    _check_order(config, described)
    selection = sources.selection(config)
    if selection is None:
        return
    manifests = [_manifest(folder) for folder in selection.caches]
    for folder, manifest in zip(selection.caches, manifests, strict=True):
        identity = manifest.about["identity"]
        if "draws" in identity:
            raise ConfigError(PATH, f"{folder!r} holds rows of an augmented run, and no record's. {UNCHANGED}.")
        if "draws" in identity["kept"]:
            raise ConfigError(PATH, f"{folder!r} holds draws, of which none tells how hard a record is. {UNCHANGED}.")
        other = cached.differences(identity["data"], cached.data_identity(config, sources.splits(config)["train"]))
        if other:
            raise ConfigError(PATH, f"{folder!r} is of other data: {'; '.join(other)}. {UNCHANGED}.")
        if manifest.about["classes"] != manifests[0].about["classes"]:
            both = " and ".join(map(repr, (selection.caches[0], folder)))
            raise ConfigError(PATH, f"the teachers of {both} have unlike classes. Choose others.")
    if selection.by == "loss" and "label" not in described.fields:
        raise ConfigError(PATH, "by='loss' needs labels, and the records have none. Choose by='entropy'.")


def _check_order(config: ConfigDict, described: Description) -> None:
    order = sources.order(config)
    if order is None:
        return
    shape, kind = described.fields.get(order.field, ((-1,), "O"))
    if shape or np.dtype(kind).kind not in "iu":
        known = ", ".join(name for name, (shape, kind) in described.fields.items() if not shape)
        raise ConfigError(ORDER, f"the records have no whole number {order.field!r}. Choose one of {known}.")
    if order.field == "label" and described.classes is not None:
        beyond = sorted({c for group in order.groups for c in group if not 0 <= c < described.classes})
        if beyond:
            why = f"no record has the class {beyond[0]}; there are {described.classes}, from 0"
            raise ConfigError(ORDER, f"{config.data.order!r}: {why}. Leave it out.")


def _manifest(folder: str) -> Manifest:
    try:
        return read_manifest(_train(folder))
    except StoreError as error:
        raise ConfigError(PATH, f"{error}. {UNCHANGED}.") from None


def _train(folder: str) -> Path:
    return Path(folder).expanduser() / "train"


def count(config: ConfigDict, records: int) -> int:
    """How many of the training records a run (or a stage of it) learns from."""
    selection = sources.selection(config)
    return selection.count(records) if selection else records


def chosen(config: ConfigDict, records: Records) -> np.ndarray | Phases | None:
    """The numbers of the records that a run learns from, rising, or phases of them; None for all.

    Raises:
        ConfigError: a cache is damaged, or says nothing of a record; or a phase has no records.
    """
    numbers, order = _selected(config, records), sources.order(config)
    if order is None:
        return numbers
    every = np.arange(len(records))
    try:
        return order.phases(records.take(every)[order.field], every if numbers is None else numbers)
    except ValueError as error:
        raise ConfigError(ORDER, f"{config.data.order!r}: {error}.") from None


def _selected(config: ConfigDict, records: Records) -> np.ndarray | None:
    selection = sources.selection(config)
    if selection is None:
        return None
    return selection.chosen(config.seed, len(records), _hard(selection, records) if selection.caches else None)


def _hard(selection: Selection, records: Records) -> np.ndarray:
    try:
        stores = [Store(_train(folder)) for folder in selection.caches]
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


def hold(workdir: Path, config: ConfigDict, found: np.ndarray | Phases | None) -> None:
    """Notes in a workdir which records its run learns from; a run that goes on must find the same.

    Raises:
        ConfigError: it finds others, since a cache was written anew.
    """
    if found is None:
        return
    numbers = np.concatenate(found.pools) if isinstance(found, Phases) else found
    file = workdir / "selection.json"
    said = {
        "select": config.data.select,
        "records": len(numbers),
        "sha256": hashlib.sha256(numbers.astype(np.int64).tobytes()).hexdigest(),
    }
    if file.is_file() and json.loads(file.read_text()) != said:
        cure = "Choose another --workdir, or bring back the cache that it began with"
        why = f"{str(workdir)!r} began with other records than {config.data.select!r} gives now"
        raise ConfigError(PATH, f"{why}. {cure}.")
    if jax.process_index() == 0:
        write_json(file, said)
