"""The option `cache`: read a teacher's outputs from files that `jaxdistill cache` wrote before the run.

A cache has one store (a folder of files) for each stream (a named source of batches, such as `train`), and one for the
test records. A store belongs to one teacher, data set and augmentation. Its identity records everything that its
content depends on. A run refuses a store with another identity. The format of the outputs is in `codec.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.core.registry import caches
from jaxdistill.core.types import NO_VARIABLES, Shapes, Variables
from jaxdistill.data.pipeline import TEST, Pipeline
from jaxdistill.data.records import Records
from jaxdistill.data.store import Store, StoreError, StoreManifest, differences
from jaxdistill.data.stream import StoredFields
from jaxdistill.teachers.cache_identity import KEY, WRITE, drop_unrecorded, identity, read_description
from jaxdistill.teachers.cached_head import head_of, read_head
from jaxdistill.teachers.codec import Encoding, decoding_model
from jaxdistill.teachers.option import Context, Option
from jaxdistill.teachers.teacher import Fields, Teacher


@caches.register
def outputs(
    folder: str,
    dtype: Literal["float32", "float16"] = "float32",
    top: int = 0,
    layers: tuple[int, ...] = (),
    features: bool = False,
) -> Encoding:
    """Keep a teacher's outputs in a cache on disk, which runs read instead of running the teacher's network.

    The command `jaxdistill cache` writes it. The arguments say where the cache is, which outputs it stores, and in
    which dtype.

    Args:
        folder: folder of the cache.
        dtype: dtype of the stored values. With float32, a teacher's stored outputs equal those of a teacher that runs
            beside the student, to the bit.
        top: store only this many of the largest logits, and the total probability of all other classes; 0 stores all
            logits. With `top` in float16, a logit takes 4 bytes with its class number. All logits of the test examples
            are stored in any case, for the evaluation.
        layers: indices of the hidden states to store; 0 is the embedding.
        features: store the inputs of the teacher's head instead of logits, and the head once. The logits of all
            classes are multiplied out in the student's step, chunk by chunk; in float32 they are exact. For language
            models.

    Raises:
        ValueError: `folder` is empty, `top` or a layer is negative, or both `top` and `features` are set.
    """
    if not folder or top < 0 or any(layer < 0 for layer in layers) or (features and top):
        values = f"folder={folder!r}, top={top}, layers={layers}, features={features}"
        raise ValueError(f"set a folder, top and layers of at least 0, and one of top and features; got {values}")
    return Encoding(folder, dtype, top, layers, features=features)


@caches.register
def draws(folder: str, count: int = 128, temperature: float = 1.0) -> Encoding:
    """Keep classes sampled from softmax(teacher logits / temperature) in a cache on disk, with 2 bytes per sample.

    Runs read the cache instead of running the teacher's network. The frequencies of the sampled classes replace the
    teacher's probabilities. The gradient of the loss `kd` is unbiased.

    Args:
        folder: folder of the cache, which `jaxdistill cache` writes.
        count: number of samples for each example (or token). For the test examples, all logits are stored instead, in
            float16.
        temperature: temperature of the distribution that is sampled; it must equal that of the loss.

    Raises:
        ValueError: `folder` is empty, `count` is below 1, or `temperature` is not positive.
    """
    if not folder or count < 1 or temperature <= 0:
        values = f"folder={folder!r}, count={count}, temperature={temperature}"
        raise ValueError(f"set a folder, a count of at least 1 and a temperature above 0; got {values}")
    return Encoding(folder, "float16", 0, (), count, temperature)


def parse_encoding(value: str, path: str) -> Encoding:
    """Parse the value of a teacher's option `cache` into an `Encoding`: the cache folder and the storage format.

    Args:
        value: spec string of the cache, such as "outputs(folder='...')".
        path: key of the config for error messages, such as `teachers.big.cache`.

    Raises:
        ConfigError: the value cannot be parsed, or names a file.
    """
    encoding: Encoding = caches.build(value, path)
    if Path(encoding.folder).expanduser().is_file():
        raise ConfigError(path, f"{encoding.folder!r} is a file; give the folder that `jaxdistill cache` writes.")
    return encoding


def store_folder(encoding: Encoding, stream: str) -> Path:
    """Return the subfolder of a cache that holds the teacher outputs of one stream (a named source of batches).

    Args:
        encoding: folder and storage format of the cache.
        stream: name of the stream, or `TEST` for the test examples.
    """
    return Path(encoding.folder).expanduser() / stream


def prefix_of(name: str) -> str:
    """Return `cached/NAME/`, the prefix of the batch fields that hold the stored outputs of the teacher `name`."""
    return f"cached/{name}/"


@dataclass(frozen=True, kw_only=True)
class CachedTeacher(Teacher):
    """A teacher whose outputs were stored on disk before the run; the run reads them and adds them to the batches.

    The field `network` is a model that takes these outputs from the batch; see `decoding_model`.

    Args:
        encoding: folder and format of the stored outputs
        stores: description of the stored outputs (`StoreManifest`) of each stream (a named source of batches) by name,
            and of the test examples under `TEST`
        by_row: names of the streams with random augmentation. Their outputs are stored for every augmented example in
            the order of training. The outputs of other streams are stored for every example of the data set
    """

    encoding: Encoding
    stores: Mapping[str, StoreManifest]
    by_row: frozenset[str]

    @property
    def trained_here(self) -> bool:
        """Return False: this run does not train the teacher, whose outputs were stored before the run."""
        return False

    @property
    def runs(self) -> bool:
        """Return False: this run does not apply the teacher's network, because it reads the outputs from disk."""
        return False

    @property
    def has_values(self) -> bool:
        """Return True: a cached teacher needs no parameters but those of its head, which the cache holds."""
        return True

    def delivered(self) -> Variables:
        """Return the parameters of the teacher's head (last layer) if features are cached; else empty variables.

        The student's training step multiplies the cached features by this head.

        Raises:
            DamageError: the file with the head is missing, has changed, or belongs to another teacher.
        """
        if not self.encoding.features:
            return NO_VARIABLES
        return self.shard(Variables(read_head(self.encoding, self.stores["train"]), {}))

    def fields(self, stream: str) -> Fields:
        """Return the fields of cached outputs that are added to an example: a dict from field name to (shape, dtype).

        Args:
            stream: name of the stream (a named source of batches), or `TEST` for the test examples.
        """
        return {f"{prefix_of(self.name)}{name}": field for name, field in self.stores[stream].fields.items()}

    def stored(self, stream: str) -> StoredFields:
        """Open the cached teacher outputs of a stream (a named source of batches), and check that no file is damaged.

        Args:
            stream: name of the stream, or `TEST` for the test examples.

        Raises:
            ConfigError: the outputs are not all written.
            DamageError: a file is damaged.
        """
        try:
            store = Store(store_folder(self.encoding, stream))
            if store.manifest != self.stores[stream]:
                raise DamageError(f"{store_folder(self.encoding, stream)} was written again since the run began")
        except StoreError as error:
            raise ConfigError(f"{self.path}.{KEY}", f"{error}. {WRITE}.") from None
        except DamageError as error:
            cure = "The same `jaxdistill cache` command writes damaged files again"
            raise DamageError(f"{self.path}.{KEY}: {error}. {cure}") from None
        return StoredFields(Records(_Prefixed(store, prefix_of(self.name)), None), stream in self.by_row)

    def cost(self, variables: Variables, rows: Shapes) -> dict[str, Any]:
        """Return the cost of the teacher's original network, which was measured when its outputs were stored.

        The result is a dict with `parameters`, `bytes` and `flops` of a forward pass on one example.

        Args:
            variables: unused.
            rows: unused.
        """
        # caches of an earlier version hold a time too, which was not measured in turns with the student's
        measured = self.stores["train"].about["cost"]
        return {name: value for name, value in measured.items() if name != "latency_ms"}


class _Prefixed:
    """A wrapper of a store (cached teacher outputs) that adds a prefix to the names of the fields of its rows."""

    def __init__(self, store: Store, prefix: str):
        self._store, self._prefix = store, prefix

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        return [{f"{self._prefix}{name}": x for name, x in row.items()} for row in self._store.__getitems__(rows)]


def apply(teacher: Teacher, value: str, context: Context) -> CachedTeacher:
    """Replace a teacher that runs its network by a `CachedTeacher`, which reads its outputs from a cache on disk.

    Only the description of the stored outputs is read now, and compared with what the run needs.

    Args:
        teacher: the teacher that runs its network.
        value: value of the option `cache`, such as "outputs(folder='...')".
        context: the data and settings of the run.

    Raises:
        ConfigError: stored outputs are missing or too few for the run, or belong to another teacher, data set or
            format.
    """
    path, data = f"{teacher.path}.{KEY}", context.data
    encoding, stores = parse_encoding(value, path), {}
    for name in data.with_test:
        folder = store_folder(encoding, name)
        try:
            stores[name] = manifest = read_description(folder)
        except StoreError as error:
            raise ConfigError(path, f"{error}. {WRITE}.") from None
        except DamageError as error:
            raise DamageError(f"{path}: {error}. {WRITE}") from None
        written = manifest.about["identity"]
        wanted = drop_unrecorded(identity(teacher, encoding, data, name), written)
        if changes := differences(written, wanted):
            raise ConfigError(path, f"{folder} is stale: {'; '.join(changes)}. Give another folder. {WRITE}.")
        needed = entries_needed(data, name, context.steps)
        if manifest.rows < needed:
            short = f"{folder} holds {manifest.rows} rows, {needed} are needed"
            raise ConfigError(path, f"{short}. Give another folder. {WRITE}.")
    about, temperature = stores["train"].about, encoding.temperature
    head = head_of(stores["train"], store_folder(encoding, "train")) if encoding.features else None
    prefix = prefix_of(teacher.name)
    second = teacher.network.second_prefix
    network = decoding_model(prefix, about["classes"], about["states"], temperature, teacher.prefix, head, second)
    by_row = frozenset(name for name, stream in data.with_test.items() if stream.is_random)
    return CachedTeacher(**{**vars(teacher), "network": network}, encoding=encoding, stores=stores, by_row=by_row)


def entries_needed(data: Pipeline, name: str, steps: int) -> int:
    """Return the number of examples for which the cache of a stream (a named source of batches) needs teacher outputs.

    Without random augmentation, this is the number of examples in the data set, because every epoch has the same
    inputs. With random augmentation, every example of every training batch is a new input: `steps * batch_size`.

    Args:
        data: the run's data pipeline.
        name: name of the stream, or `TEST` for the test examples.
        steps: number of training steps of the student.
    """
    stream = data.with_test[name]
    if stream.is_random:
        return steps * stream.batch_size
    return (data.test_description if name == TEST else data.descriptions[name]).records


OPTION = Option(
    KEY,
    apply,
    delivers=True,
    lacks=lambda _: {"gradients": "a cached teacher has none", "new_records": "a cache has no outputs for them"},
    check=parse_encoding,
)
