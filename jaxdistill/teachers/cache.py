"""The option `cache`: a teacher whose outputs were written before the run, by `jaxdistill cache`.

A store belongs to one teacher, data set and augmentation. All that decides its content is its identity; a run refuses a
store of another one. What of the outputs is kept is in `codec.py`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxdistill.core.checkpoint import CheckpointError, choose_step, manifests
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.hub_files import fingerprint
from jaxdistill.core.registry import caches, parse
from jaxdistill.core.types import Shapes, Variables
from jaxdistill.data.pipeline import TEST, Pipeline
from jaxdistill.data.records import Records
from jaxdistill.data.store import Manifest, Store, StoreError, differences, read_manifest
from jaxdistill.data.stream import Beside
from jaxdistill.teachers.codec import Keep, from_batch
from jaxdistill.teachers.load import no_checkpoint
from jaxdistill.teachers.option import Context, Option
from jaxdistill.teachers.teacher import Fields, Teacher, checkpoint_of

KEY = "cache"
WRITE = "Write it: jaxdistill cache --config ... (the same config)"


@caches.register
def outputs(
    folder: str, dtype: Literal["float32", "float16"] = "float32", top: int = 0, layers: tuple[int, ...] = ()
) -> Keep:
    """Outputs of a teacher, written once and read as data.

    Args:
        folder: where they are.
        dtype: of what is written. With float32 a student equals one of a live teacher to the bit.
        top: how many of the largest logits are kept, with the mass of the rest; 0: all. Of the test records all are
            kept anyway, because students are measured beside them. In float16, 4 bytes each.
        layers: the hidden states that are kept, by number from 0, the embedding.
    """
    if not folder or top < 0 or any(layer < 0 for layer in layers):
        raise ValueError(f"give a folder, and numbers from 0; got folder={folder!r}, top={top}, layers={layers}")
    return Keep(folder, dtype, top, layers)


@caches.register
def draws(folder: str, count: int = 128, temperature: float = 1.0) -> Keep:
    """Classes drawn from a teacher's softened distribution, 2 bytes each; for `kd`, whose gradient they leave unbiased.

    Args:
        folder: where they are.
        count: how many are drawn for each row (or token). Of the test records all logits are kept, in float16.
        temperature: at which they are drawn, that of the term that reads them.
    """
    if not folder or count < 1 or temperature <= 0:
        given = f"folder={folder!r}, count={count}, temperature={temperature}"
        raise ValueError(f"give a folder, a count from 1, and a temperature above 0; got {given}")
    return Keep(folder, "float16", 0, (), count, temperature)


def keep_of(value: str, path: str) -> Keep:
    """What the option says is kept of a teacher's outputs."""
    return caches.build(value, path)


def kept(keep: Keep, stream: str) -> Keep:
    """What is kept of a stream. Of the test records all logits: an even share of the rest is no likelihood.

    The largest 128 logits of 7,312 hold 95 % of SmolLM2's probability on the Bible; with the rest spread evenly, its
    3.21 nats a token would read as 3.35.
    """
    return keep._replace(top=0, draws=0) if stream == TEST else keep


def folder_of(keep: Keep, stream: str) -> Path:
    """The folder of a stream's store."""
    return Path(keep.folder).expanduser() / stream


def prefix_of(name: str) -> str:
    """The prefix of a teacher's fields in a batch."""
    return f"cached/{name}/"


@dataclass(frozen=True, kw_only=True)
class CachedTeacher(Teacher):
    """A teacher that is read from stores. Its network finds the outputs in the batch, and has no parameters.

    Args:
        keep: what is kept of the outputs, and where
        stores: the manifest of each stream, and of the test records under `TEST`
        by_row: the streams whose entries belong to the rows of the run, because their augmentation draws
    """

    keep: Keep
    stores: Mapping[str, Manifest]
    by_row: frozenset[str]

    @property
    def trained_here(self) -> bool:
        """False: its outputs are there."""
        return False

    @property
    def runs(self) -> bool:
        """False: its outputs are read."""
        return False

    @property
    def has_values(self) -> bool:
        """True: it needs none."""
        return True

    def fields(self, stream: str) -> Fields:
        """The outputs that are kept."""
        return {f"{prefix_of(self.name)}{name}": field for name, field in self.stores[stream].fields.items()}

    def stored(self, stream: str) -> Beside:
        """Opens the store of a stream, with every shard checked.

        Raises:
            ConfigError: a shard is damaged or missing.
        """
        try:
            store = Store(folder_of(self.keep, stream))
        except StoreError as error:
            raise ConfigError(f"{self.path}.{KEY}", f"{error}, and write it again.") from None
        return Beside(Records(_Prefixed(store, prefix_of(self.name)), None), stream in self.by_row)

    def cost(self, variables: Variables, rows: Shapes) -> dict[str, Any]:
        """What a forward pass of the network costs whose outputs these are, as it was measured when they were written.

        Args:
            variables: unused.
            rows: unused.
        """
        return self.stores["train"].about["cost"]


class _Prefixed:
    """A store whose fields carry their teacher's name."""

    def __init__(self, store: Store, prefix: str):
        self._store, self._prefix = store, prefix

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        return [{f"{self._prefix}{name}": x for name, x in row.items()} for row in self._store.__getitems__(rows)]


def apply(teacher: Teacher, value: str, context: Context) -> CachedTeacher:
    """The teacher as its stores have it, of which no entry is read yet.

    Raises:
        ConfigError: a store is missing, unfinished, damaged, stale, or too short for the run.
    """
    path, data = f"{teacher.path}.{KEY}", context.data
    keep, stores = keep_of(value, path), {}
    for name in data.with_test:
        folder = folder_of(keep, name)
        try:
            stores[name] = found = read_manifest(folder)
        except StoreError as error:
            raise ConfigError(path, f"{error}. {WRITE}.") from None
        if other := differences(found.about["identity"], identity(teacher, keep, data, name)):
            raise ConfigError(path, f"{folder} is stale: {'; '.join(other)}. Give another folder. {WRITE}.")
        needed = rows_of(data, name, context.steps)
        if found.rows < needed:
            short = f"{folder} holds {found.rows} rows, {needed} are needed"
            raise ConfigError(path, f"{short}. Give another folder. {WRITE}.")
    about = stores["train"].about
    network = from_batch(
        prefix_of(teacher.name), about["classes"], about["states"], keep.temperature, reads=teacher.prefix
    )
    by_row = frozenset(name for name, stream in data.with_test.items() if stream.draws)
    return CachedTeacher(**{**vars(teacher), "network": network}, keep=keep, stores=stores, by_row=by_row)


def rows_of(data: Pipeline, name: str, steps: int) -> int:
    """How many entries a run needs of a stream: one for each record, or where augmentation draws, for each row.

    Args:
        data: of the run.
        name: of the stream.
        steps: of the student.
    """
    stream = data.with_test[name]
    if stream.draws:
        return steps * stream.batch_size
    return (data.test_description if name == TEST else data.descriptions[name]).records


def identity(teacher: Teacher, keep: Keep, data: Pipeline, name: str) -> dict[str, Any]:
    """All that decides a teacher's outputs on a stream: a store of another identity is stale.

    Raises:
        ConfigError: the teacher is neither a checkpoint nor pretrained, or its weights are not there.
    """
    keep, stream = kept(keep, name), data.with_test[name]
    network = {key: list(x) if isinstance(x, tuple) else x for key, x in teacher.options.items()}
    drawn = {"draws": keep.draws, "temperature": keep.temperature} if keep.draws else {}
    found = {
        "teacher": {"model": teacher.spec, "weights": weights(teacher), "dtype": teacher.dtype, **network},
        "data": data.identity(stream),
        "augmentation": list(stream.augment),
        "kept": {"dtype": keep.dtype, "top": keep.top, "layers": list(keep.layers), **drawn},
    }
    if stream.draws:
        selected = _selected(data) if name == "train" else {}
        found["draws"] = {"seed": data.seed, "batch_size": stream.batch_size, **selected}
    return found


def _selected(data: Pipeline) -> dict[str, Any]:
    """Which training records are drawn: the selection, the caches that it asks, and the order."""
    ordered = {"order": data.order} if data.order else {}
    if data.selection is None:
        return ordered
    try:
        folders = (Path(cache).expanduser() / "train" for cache in data.selection.caches)
        asked = [read_manifest(folder).about["identity"] for folder in folders]
    except StoreError as error:
        raise ConfigError("data.select", f"{error}. {WRITE}.") from None
    return {"select": data.select, "asked": asked, **ordered}


def weights(teacher: Teacher) -> str:
    """Tells one set of weights from another, and one vocabulary that is kept of them from another.

    Raises:
        ConfigError: the teacher is neither a checkpoint nor pretrained, or its weights are not there.
    """
    if teacher.checkpoint:
        try:
            folder, which = checkpoint_of(teacher.checkpoint)
            files = manifests(folder)[choose_step(folder, which)]["files"]
        except (CheckpointError, ValueError, OSError) as error:
            raise no_checkpoint(teacher.path, teacher.checkpoint, error) from None
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    spec = parse(teacher.spec, f"{teacher.path}.model")
    if spec.name != "pretrained" or teacher.steps:
        cure = "Train it in a run of its own, and name that run as its checkpoint"
        raise ConfigError(f"{teacher.path}.{KEY}", f"its weights do not exist before the run. {cure}.")
    try:
        held = fingerprint(str(spec.args[0] if spec.args else spec.kwargs["source"]))
        cut = Path(str(spec.kwargs.get("keep", ""))).expanduser() / "vocabulary.json"
        return held + (hashlib.sha256(cut.read_bytes()).hexdigest() if spec.kwargs.get("keep") else "")
    except (ValueError, OSError) as error:
        cure = "Name a checkpoint that is there, and as keep= a folder that `jaxdistill vocabulary` wrote"
        raise ConfigError(f"{teacher.path}.model", f"{error}. {cure}.") from None


OPTION = Option(
    KEY,
    apply,
    delivers=True,
    lacks=lambda _: {"gradients": "no batch brings them", "new_records": "a cache has no outputs for them"},
    check=keep_of,
)
