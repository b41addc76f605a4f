"""The option `cache`: read a teacher's outputs from stores that `jaxdistill cache` wrote before the run.

A store belongs to one teacher, data set and augmentation. Its identity records everything that its content depends on.
A run refuses a store with another identity. The format of the outputs is in `codec.py`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
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
from jaxdistill.data.stream import StoredFields
from jaxdistill.teachers.codec import Encoding, decoding_model
from jaxdistill.teachers.load import checkpoint_error
from jaxdistill.teachers.option import Context, Option
from jaxdistill.teachers.teacher import Fields, Teacher, checkpoint_of

KEY = "cache"
WRITE = "Write it: jaxdistill cache --config ... (the same config)"


@caches.register
def outputs(
    folder: str, dtype: Literal["float32", "float16"] = "float32", top: int = 0, layers: tuple[int, ...] = ()
) -> Encoding:
    """Cache a teacher's outputs.

    Args:
        folder: folder of the stores.
        dtype: of the stored values. With float32, the student is the same as with a live teacher, to the bit.
        top: number of the largest logits to store, with the probability mass of the rest; 0: all. In float16, a logit
            takes 4 bytes with its class number. For the test records, all logits are stored: the evaluation needs them.
        layers: numbers of the hidden states to store; 0 is the embedding.
    """
    if not folder or top < 0 or any(layer < 0 for layer in layers):
        values = f"folder={folder!r}, top={top}, layers={layers}"
        raise ValueError(f"set a folder, and top and layers of at least 0; got {values}")
    return Encoding(folder, dtype, top, layers)


@caches.register
def draws(folder: str, count: int = 128, temperature: float = 1.0) -> Encoding:
    """Cache classes drawn from a teacher's softened distribution, 2 bytes each.

    They are for `kd`, whose gradient stays unbiased.

    Args:
        folder: folder of the stores.
        count: draws for each row (or token). For the test records, all logits are stored, in float16.
        temperature: of the softened distribution; it must be that of the term.
    """
    if not folder or count < 1 or temperature <= 0:
        values = f"folder={folder!r}, count={count}, temperature={temperature}"
        raise ValueError(f"set a folder, a count of at least 1 and a temperature above 0; got {values}")
    return Encoding(folder, "float16", 0, (), count, temperature)


def parse_encoding(value: str, path: str) -> Encoding:
    """Parse the value of the option, such as `outputs(folder='...')`."""
    return caches.build(value, path)


def stream_encoding(encoding: Encoding, stream: str) -> Encoding:
    """Return the encoding of a stream. For the test records, it keeps all logits: an evenly spread rest is inaccurate.

    The largest 128 logits of 7,312 hold 95 % of SmolLM2's probability on the Bible. With the rest spread evenly, its
    loss of 3.21 nats a token would be measured as 3.35.
    """
    return encoding._replace(top=0, draws=0) if stream == TEST else encoding


def store_folder(encoding: Encoding, stream: str) -> Path:
    """Return the folder of a stream's store."""
    return Path(encoding.folder).expanduser() / stream


def prefix_of(name: str) -> str:
    """Return the prefix of a teacher's fields in a batch."""
    return f"cached/{name}/"


@dataclass(frozen=True, kw_only=True)
class CachedTeacher(Teacher):
    """A teacher whose outputs are read from stores. Its network reads them from the batch, and has no parameters.

    Args:
        encoding: format and folder of the stored outputs
        stores: the manifest of each stream, and of the test records under `TEST`
        by_row: streams whose augmentation is random, so that their stores have an entry for each row of the run
    """

    encoding: Encoding
    stores: Mapping[str, Manifest]
    by_row: frozenset[str]

    @property
    def trained_here(self) -> bool:
        """False: its outputs exist already."""
        return False

    @property
    def runs(self) -> bool:
        """False: its outputs are read."""
        return False

    @property
    def has_values(self) -> bool:
        """True: it needs no values."""
        return True

    def fields(self, stream: str) -> Fields:
        """Return the stored fields."""
        return {f"{prefix_of(self.name)}{name}": field for name, field in self.stores[stream].fields.items()}

    def stored(self, stream: str) -> StoredFields:
        """Open the store of a stream, and check every shard.

        Raises:
            ConfigError: a shard is damaged or missing.
        """
        try:
            store = Store(store_folder(self.encoding, stream))
        except StoreError as error:
            raise ConfigError(f"{self.path}.{KEY}", f"{error}, and write it again.") from None
        return StoredFields(Records(_Prefixed(store, prefix_of(self.name)), None), stream in self.by_row)

    def cost(self, variables: Variables, rows: Shapes) -> dict[str, Any]:
        """Return the cost of the original network's forward pass, as measured when the store was written.

        Args:
            variables: unused.
            rows: unused.
        """
        return self.stores["train"].about["cost"]


class _Prefixed:
    """A view of a store that adds a prefix to the names of its fields."""

    def __init__(self, store: Store, prefix: str):
        self._store, self._prefix = store, prefix

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        return [{f"{self._prefix}{name}": x for name, x in row.items()} for row in self._store.__getitems__(rows)]


def apply(teacher: Teacher, value: str, context: Context) -> CachedTeacher:
    """Replace the teacher by one that reads its stores. Only their manifests are read here.

    Raises:
        ConfigError: a store is missing, unfinished, damaged, stale, or too short for the run.
    """
    path, data = f"{teacher.path}.{KEY}", context.data
    encoding, stores = parse_encoding(value, path), {}
    for name in data.with_test:
        folder = store_folder(encoding, name)
        try:
            stores[name] = manifest = read_manifest(folder)
        except StoreError as error:
            raise ConfigError(path, f"{error}. {WRITE}.") from None
        if changes := differences(manifest.about["identity"], identity(teacher, encoding, data, name)):
            raise ConfigError(path, f"{folder} is stale: {'; '.join(changes)}. Give another folder. {WRITE}.")
        needed = rows_needed(data, name, context.steps)
        if manifest.rows < needed:
            short = f"{folder} holds {manifest.rows} rows, {needed} are needed"
            raise ConfigError(path, f"{short}. Give another folder. {WRITE}.")
    about = stores["train"].about
    network = decoding_model(
        prefix_of(teacher.name), about["classes"], about["states"], encoding.temperature, reads=teacher.prefix
    )
    by_row = frozenset(name for name, stream in data.with_test.items() if stream.draws)
    return CachedTeacher(**{**vars(teacher), "network": network}, encoding=encoding, stores=stores, by_row=by_row)


def rows_needed(data: Pipeline, name: str, steps: int) -> int:
    """Return the number of entries that a run needs of a stream.

    It is one per record, or with random augmentation one per row.

    Args:
        data: the run's data pipeline.
        name: of the stream.
        steps: training steps of the student.
    """
    stream = data.with_test[name]
    if stream.draws:
        return steps * stream.batch_size
    return (data.test_description if name == TEST else data.descriptions[name]).records


def identity(teacher: Teacher, encoding: Encoding, data: Pipeline, name: str) -> dict[str, Any]:
    """Return everything that a teacher's stored outputs on a stream depend on. A store with another identity is stale.

    Raises:
        ConfigError: the teacher has neither a checkpoint nor pretrained weights, or its weights cannot be read.
    """
    encoding, stream = stream_encoding(encoding, name), data.with_test[name]
    network = {key: list(x) if isinstance(x, tuple) else x for key, x in teacher.options.items()}
    draw_settings = {"draws": encoding.draws, "temperature": encoding.temperature} if encoding.draws else {}
    identity_fields = {
        "teacher": {"model": teacher.spec, "weights": weights_hash(teacher), "dtype": teacher.dtype, **network},
        "data": data.identity(stream),
        "augmentation": list(stream.augment),
        "kept": {"dtype": encoding.dtype, "top": encoding.top, "layers": list(encoding.layers), **draw_settings},
    }
    if stream.draws:
        selected = _selected(data) if name == "train" else {}
        identity_fields["draws"] = {"seed": data.seed, "batch_size": stream.batch_size, **selected}
    return identity_fields


def _selected(data: Pipeline) -> dict[str, Any]:
    """Return how training records are selected: the spec, the identities of the caches that it reads, and the order."""
    order = {"order": data.order} if data.order else {}
    if data.selection is None:
        return order
    try:
        folders = (Path(cache).expanduser() / "train" for cache in data.selection.caches)
        identities = [read_manifest(folder).about["identity"] for folder in folders]
    except StoreError as error:
        raise ConfigError("data.select", f"{error}. {WRITE}.") from None
    return {"select": data.select, "asked": identities, **order}


def weights_hash(teacher: Teacher) -> str:
    """Return a hash of the teacher's weights, and of its reduced vocabulary if it has one.

    Raises:
        ConfigError: the teacher has neither a checkpoint nor pretrained weights, or its weights cannot be read.
    """
    if teacher.checkpoint:
        try:
            folder, which = checkpoint_of(teacher.checkpoint)
            files = manifests(folder)[choose_step(folder, which)]["files"]
        except (CheckpointError, ValueError, OSError) as error:
            raise checkpoint_error(teacher.path, teacher.checkpoint, error) from None
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    spec = parse(teacher.spec, f"{teacher.path}.model")
    if spec.name != "pretrained" or teacher.steps:
        cure = "Train it in a separate run, and set its checkpoint to the folder of that run"
        raise ConfigError(f"{teacher.path}.{KEY}", f"its weights do not exist before the run. {cure}.")
    try:
        weights = fingerprint(str(spec.args[0] if spec.args else spec.kwargs["source"]))
        vocabulary = Path(str(spec.kwargs.get("keep", ""))).expanduser() / "vocabulary.json"
        return weights + (hashlib.sha256(vocabulary.read_bytes()).hexdigest() if spec.kwargs.get("keep") else "")
    except (ValueError, OSError) as error:
        cure = "Name a checkpoint that exists, and as keep= a folder that `jaxdistill vocabulary` wrote"
        raise ConfigError(f"{teacher.path}.model", f"{error}. {cure}.") from None


OPTION = Option(
    KEY,
    apply,
    delivers=True,
    lacks=lambda _: {"gradients": "a cached teacher has none", "new_records": "a cache has no outputs for them"},
    check=parse_encoding,
)
