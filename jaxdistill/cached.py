"""Cached teachers: which store belongs to which teacher, data and augmentation, and what it puts into the batches."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxdistill import build, sources
from jaxdistill.checkpoint import CheckpointError, choose_step, manifests
from jaxdistill.data.datasets import contents
from jaxdistill.data.describe import Description
from jaxdistill.data.records import Records
from jaxdistill.data.store import Manifest, Store, StoreError, read_manifest
from jaxdistill.data.stream import Beside
from jaxdistill.data.token_cache import words
from jaxdistill.errors import ConfigError
from jaxdistill.hub.folders import fingerprint
from jaxdistill.models.cached import Keep, from_batch
from jaxdistill.registry import parse
from jaxdistill.types import Model

# what a selection reads: records as they are
UNCHANGED = "Write it: python -m jaxdistill.cache --config ... with the same data, and data.augment=()"


class Cached(NamedTuple):
    """A teacher that is read.

    model: which finds its outputs in the batch
    cost: what a forward pass of the living teacher costs, as in the table
    stores: the manifest of each stream, and of the test records under "test"
    by_row: the streams whose entries belong to the rows of a run, since their augmentation draws
    """

    model: Model
    cost: dict[str, Any]
    stores: dict[str, Manifest]
    by_row: frozenset[str]

    def fields(self, name: str, stream: str) -> dict[str, tuple[tuple[int, ...], str]]:
        """What it adds to a record of a stream, under its name: shape and dtype by field."""
        return {f"cached/{name}/{field}": look for field, look in self.stores[stream].fields.items()}


def kept(keep: Keep, stream: str) -> Keep:
    """What is kept of a stream. Of the test records all logits: a bucket's even share of the rest is no likelihood.

    Of SmolLM2 on the Bible the largest 128 of 7,312 hold 95 %, and yet its 3.21 nats a token would read as 3.35.
    """
    return keep._replace(top=0, draws=0) if stream == "test" else keep


def folder_of(keep: Keep, stream: str) -> Path:
    """Where a stream's entries lie."""
    return Path(keep.folder).expanduser() / stream


def streams(config: ConfigDict) -> dict[str, sources.Split]:
    """Whatever a run reads: its streams, and the test records under "test"."""
    return {**sources.splits(config), "test": sources.Split(config.data.test, "data", "test")}


def draws(config: ConfigDict, stream: str) -> bool:
    """Whether the augmentation of a stream draws, so that no two epochs are alike."""
    return stream != "test" and any(transform.draws for transform in sources.transforms(config)[stream])


def identity(config: ConfigDict, name: str, stream: str) -> dict[str, Any]:
    """All that decides what a teacher says of a stream: a store of another identity is stale.

    Raises:
        ConfigError: the teacher is neither a checkpoint nor pretrained, or its weights are not there.
    """
    entry, keep, read = config.teachers[name], kept(build.keep_of(config, name), stream), streams(config)[stream]
    augment = config.streams[stream].augment if stream in config.streams else config.data.augment
    reads = {"reads": entry.reads} if entry.reads else {}
    reads |= {"classes": list(entry.classes)} if entry.classes else {}
    reads |= {"quantized": entry.quantized} if entry.quantized else {}
    drawn = {"draws": keep.draws, "temperature": keep.temperature} if keep.draws else {}
    said = {
        "teacher": {"model": entry.model, "weights": weights(config, name), "dtype": config.dtype, **reads},
        "data": data_identity(config, read),
        "augmentation": list(augment),
        "kept": {"dtype": keep.dtype, "top": keep.top, "layers": list(keep.layers), **drawn},
    }
    if draws(config, stream):
        size = sources.stream_batch_size(config, stream)
        said["draws"] = {"seed": config.seed, "batch_size": size, **_selected(config, stream)}
    return said


def data_identity(config: ConfigDict, read: sources.Split) -> dict[str, str]:
    """What the records of a split are, and what data set and tokenizers hold now, which their names do not say."""
    held = contents(config.data.name, read.text, sources.data_folder(config), read.path, read.key)
    how = sources.tokenization(config)
    named = {"name": config.data.name, "tokens": config.data.tokens, "split": read.text}
    return {**named, "contents": held, **({"words": words(how)} if how else {})}


def _selected(config: ConfigDict, stream: str) -> dict[str, Any]:
    """Which records are drawn: the selection, and who is asked for it."""
    if stream != "train":
        return {}
    ordered, selection = {"order": config.data.order} if config.data.order else {}, sources.selection(config)
    if selection is None:
        return ordered
    try:
        asked = [read_manifest(Path(cache).expanduser() / "train").about["identity"] for cache in selection.caches]
    except StoreError as error:
        raise ConfigError("data.select", f"{error}. {UNCHANGED}.") from None
    return {"select": config.data.select, "asked": asked, **ordered}


def weights(config: ConfigDict, name: str) -> str:
    """Tells one set of weights from another, and one vocabulary that is kept of them."""
    entry, path = config.teachers[name], f"teachers.{name}"
    if entry.checkpoint:
        try:
            folder, which = build.teacher_checkpoint(config, name)
            files = manifests(folder)[choose_step(folder, which)]["files"]
        except (CheckpointError, ValueError, OSError) as error:
            raise build.no_checkpoint(config, name, error) from None
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    spec = parse(entry.model, f"{path}.model")
    if spec.name != "pretrained" or entry.steps:
        cure = "Train it in a run of its own, and name that run as its checkpoint"
        raise ConfigError(f"{path}.cache", f"its weights do not exist before the run. {cure}.")
    try:
        held = fingerprint(str(spec.args[0] if spec.args else spec.kwargs["source"]))
        cut = Path(str(spec.kwargs.get("keep", ""))).expanduser() / "vocabulary.json"
        return held + (hashlib.sha256(cut.read_bytes()).hexdigest() if spec.kwargs.get("keep") else "")
    except (ValueError, OSError) as error:
        cure = "Name a checkpoint that is there, and as keep= a folder that jaxdistill.vocabulary wrote"
        raise ConfigError(f"{path}.model", f"{error}. {cure}.") from None


def find(config: ConfigDict, described: Mapping[str, Description]) -> dict[str, Cached]:
    """The cached teachers of a config, by name, checked without reading an entry.

    Raises:
        ConfigError: a store is missing, unfinished, damaged, stale, or too short for the run.
    """
    return {name: _find(config, name, described) for name, entry in config.teachers.items() if entry.cache}


def _find(config: ConfigDict, name: str, described: Mapping[str, Description]) -> Cached:
    keep, path, stores = build.keep_of(config, name), f"teachers.{name}.cache", {}
    cure = "Write it: python -m jaxdistill.cache --config ... (the same config)"
    for stream in streams(config):
        folder = folder_of(keep, stream)
        try:
            stores[stream] = found = read_manifest(folder)
        except StoreError as error:
            raise ConfigError(path, f"{error}. {cure}.") from None
        other = differences(found.about["identity"], identity(config, name, stream))
        if other:
            raise ConfigError(path, f"{folder} is stale: {'; '.join(other)}. Give another folder. {cure}.")
        needed = rows_of(config, stream, described)
        if found.rows < needed:
            short = f"{folder} holds {found.rows} rows, {needed} are needed"
            raise ConfigError(path, f"{short}. Give another folder. {cure}.")
    about = stores["train"].about
    model = from_batch(f"cached/{name}/", about["classes"], about["states"], keep.temperature)
    return Cached(model, about["cost"], stores, frozenset(s for s in stores if draws(config, s)))


def rows_of(config: ConfigDict, stream: str, described: Mapping[str, Description]) -> int:
    """How many entries a run needs: one for each record, or for each row of the run where augmentation draws."""
    if not draws(config, stream):
        return described[stream].records
    return config.steps * sources.stream_batch_size(config, stream)


def differences(written: Mapping[str, Any], wanted: Mapping[str, Any], path: str = "") -> list[str]:
    """Where two identities differ, in words."""
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


class _Named:
    """A store whose fields carry their teacher's name."""

    def __init__(self, store: Store, prefix: str):
        self._store, self._prefix = store, prefix

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        return [{f"{self._prefix}{name}": x for name, x in row.items()} for row in self._store.__getitems__(rows)]


def open_beside(config: ConfigDict, caches: Mapping[str, Cached]) -> dict[str, tuple[Beside, ...]]:
    """What cached teachers put beside the records of each stream, every shard checked.

    Raises:
        ConfigError: a shard is damaged or missing.
    """

    def one(name: str, cache: Cached, stream: str) -> Beside:
        try:
            store = Store(folder_of(build.keep_of(config, name), stream))
        except StoreError as error:
            raise ConfigError(f"teachers.{name}.cache", f"{error}, and write it again.") from None
        return Beside(Records(_Named(store, f"cached/{name}/"), None), stream in cache.by_row)

    return {stream: tuple(one(*item, stream) for item in caches.items()) for stream in streams(config)}
