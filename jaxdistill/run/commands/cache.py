"""Write the outputs of teachers to disk once, so that runs need no teacher in memory.

jaxdistill cache --config configs/x.py [--config.a.b=value ...]

Every teacher with the key `cache` is run on all training streams and test records of the config. The same command
resumes an interrupted one: only shards that are missing or damaged are written.

Set the key in the config, or by --config.teachers.NAME.cache="outputs(folder='FOLDER')". For smaller files use
outputs(folder='FOLDER', dtype='float16', top=8), which keeps the 8 largest logits; layers=(0, 6) keeps hidden states.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.core.streams import stream_id
from jaxdistill.core.types import Factored
from jaxdistill.data.pipeline import Pipeline
from jaxdistill.data.records import Records
from jaxdistill.data.store import (
    MANIFEST,
    Fields,
    StoreError,
    StoreManifest,
    damaged_shards,
    missing_shards,
    read_manifest,
    write_manifest,
    write_shard,
)
from jaxdistill.data.stream import Batches, RowNumbers, evaluation_batches
from jaxdistill.models.abstract import abstract_outputs, has_pairs
from jaxdistill.models.hub.check import check_pretrained
from jaxdistill.parallel.compile import jit_evaluate, local_row_numbers
from jaxdistill.run import subset
from jaxdistill.run.commands import cli
from jaxdistill.run.config import Config
from jaxdistill.run.output_checks import check_no_other_folders, check_writable
from jaxdistill.run.resolve import Resolved, resolve
from jaxdistill.run.workdir import locked
from jaxdistill.teachers.cache import entries_needed, parse_encoding, store_folder
from jaxdistill.teachers.cache_identity import KEY, drop_unrecorded, identity, stream_encoding
from jaxdistill.teachers.cached_head import describe_head, is_written, write_head
from jaxdistill.teachers.codec import encoded_fields, encoded_forward, head_arrays, head_shapes
from jaxdistill.teachers.load import load

SHARD = 4096  # largest number of rows in a shard, rounded up to whole batches
SHARD_BYTES = 2**26  # approximate limit: a shard is collected in memory, and an interrupted shard is lost


def write(config: Config, console: Console) -> None:
    """Compute the outputs of teachers on all training and test examples of a config, and write them to disk.

    This is done for each teacher with the config key `teachers.NAME.cache`, which gives the folder and the format.
    Outputs that are already on disk are kept.

    Args:
        config: a complete config, from `jaxdistill.make` or `jaxdistill.load_config`.
        console: where progress is printed.

    Raises:
        ConfigError: the config is wrong, no teacher sets the key, or the data or a teacher cannot be used.
    """
    if jax.process_count() > 1:
        raise ConfigError("distributed", "a cache is written by one process; set distributed.processes=1.")
    resolved = resolve(config, jax.devices())
    names = [name for name, entry in resolved.teacher_configs.items() if entry.cache]
    if not names:
        raise ConfigError("teachers", "no teacher has a cache. Add teachers.NAME.cache=\"outputs(folder='...')\".")
    _ = resolved.data  # reports errors of the data before those of teachers
    places = {}
    for name in names:
        key = f"teachers.{name}.{KEY}"
        places[name] = Path(parse_encoding(resolved.teacher_configs[name].cache, key).folder).expanduser()
        check_writable(places[name], key)
        check_no_other_folders(places[name], key, is_ours=lambda inside: (inside / MANIFEST).exists())
    for name, place in places.items():
        with locked(place, f"teachers.{name}.{KEY}", wait=True):  # jobs of a study may write the same cache
            writer = _Writer(resolved, name)
            for stream_name, stream in resolved.data.with_test.items():
                writer.write(stream_name, resolved.data.open(stream), console)


class _Writer:
    """A writer of one teacher's outputs to disk: a folder of files (shards) for each stream (source of batches)."""

    def __init__(self, resolved: Resolved, name: str):
        self.data, self.steps, config = resolved.data, resolved.config.steps, resolved.config
        self.teacher = teacher = resolved.live_teacher(name)
        path = f"{teacher.path}.{KEY}"
        self.encoding = parse_encoding(resolved.teacher_configs[name].cache, path)
        self.rows = self.data.shapes["train"]
        outputs, _ = abstract_outputs(teacher.network, f"{teacher.path}.model", self.rows, pairs=True)
        self.classes, self.states = 0 if has_pairs(outputs) else outputs.logits.shape[-1], len(outputs.hidden_states)
        self.outputs = outputs
        chunks = config.chunks if isinstance(outputs.logits, Factored) else 1
        encodings = {stream: stream_encoding(self.encoding, stream) for stream in self.data.with_test}
        try:
            self.fields = {stream: encoded_fields(outputs, encoding, chunks) for stream, encoding in encodings.items()}
        except ValueError as error:
            raise ConfigError(path, f"{error}.") from None
        check_pretrained(teacher.network, f"{teacher.path}.model", self.rows, complete=not teacher.checkpoint)
        streams = self.data.with_test
        self.identities = {stream: identity(teacher, self.encoding, self.data, stream) for stream in streams}
        self.variables = load(teacher, self.rows)
        forwards = {name: encoded_forward(teacher.network, encoding, chunks) for name, encoding in encodings.items()}
        self.encode = {name: jit_evaluate(forward, self.variables, teacher.mesh) for name, forward in forwards.items()}

    def write(self, stream: str, records: Records, console: Console) -> None:
        """Compute those teacher outputs of a stream (a named source of batches) that are not yet on disk; write them.

        Args:
            stream: name of the stream, such as "train"; "test" for the test examples.
            records: the examples of the stream.
            console: where progress is printed.
        """
        size, folder = self.data.with_test[stream].batch_size, store_folder(self.encoding, stream)
        rows = entries_needed(self.data, stream, self.steps)
        about = {
            "identity": self._identity(folder, stream),
            "classes": self.classes,
            "states": self.states,
            "cost": self._cost(folder),
            **({"head": describe_head(head_shapes(self.outputs))} if self.encoding.features else {}),
        }
        manifest = StoreManifest(rows, _shard_rows(self.fields[stream], size), self.fields[stream], about)
        try:
            write_manifest(folder, manifest)
        except StoreError as error:
            raise ConfigError(f"{self.teacher.path}.{KEY}", f"{error}.") from None
        if self.encoding.features and not is_written(self.encoding, manifest):
            arrays = head_arrays(self.teacher.network, self.variables, self.rows, self.teacher.mesh)
            write_head(self.encoding, manifest, arrays)
        damaged = damaged_shards(folder, manifest)
        for number, _ in damaged:
            console.print(f"{self.teacher.name:>12}  {stream}: shard {number} is damaged, and is written again")
        missing = sorted(missing_shards(folder, manifest) + damaged, key=lambda shard: shard[0])
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task(
                f"{self.teacher.name} {stream}", total=sum(part.stop - part.start for _, part in missing)
            )
            for number, part in missing:
                columns_of_shard = self._shard(stream, records, size, part, functools.partial(progress.advance, task))
                write_shard(folder, manifest, number, columns_of_shard)
        console.print(f"{self.teacher.name:>12}  {stream}: {rows} rows in {folder}")

    def _identity(self, folder: Path, stream: str) -> dict[str, Any]:
        """Return the identity of a stream's outputs (a dict), without those that an earlier version did not write."""
        try:
            return drop_unrecorded(self.identities[stream], read_manifest(folder).about["identity"])
        except (StoreError, DamageError, KeyError, TypeError, AttributeError):
            return self.identities[stream]

    def _cost(self, folder: Path) -> dict[str, Any]:
        """Return the teacher's cost as a dict of parameters, bytes and FLOPs; a resumed cache keeps its old values."""
        try:
            return read_manifest(folder).about["cost"]
        except (StoreError, DamageError, KeyError):
            return self.teacher.cost(self.variables, self.rows)

    def _shard(self, stream: str, records: Records, size: int, part: slice, advance: Any) -> dict[str, np.ndarray]:
        columns: dict[str, list[np.ndarray]] = {name: [] for name in self.fields[stream]}
        count = part.stop - part.start
        for batch in _batches(self.data, stream, records, part, local_row_numbers(self.teacher.mesh, size)):
            for name, x in jax.device_get(self.encode[stream](batch)).items():
                columns[name].append(x)
            advance(min(size, count))
        return {name: np.concatenate(parts)[:count] for name, parts in columns.items()}


def _batches(
    data: Pipeline, name: str, records: Records, part: slice, rows: RowNumbers
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the batches `{field: [rows, ...]}` whose teacher outputs are stored in one shard (file).

    Without random augmentation, the examples come in the order of the data set. With random augmentation, these are
    exactly the batches that a run will train on, because the outputs hold only for the examples as augmented there.

    Args:
        data: data pipeline of the run.
        name: name of the stream (a named source of batches), such as "train".
        records: the stream's examples.
        part: the range of examples that the shard covers: indices in the data set; or, with random augmentation,
            positions in the order of training, counted from the start of the run.
        rows: indices of the rows of a batch that this process computes.
    """
    stream = data.with_test[name]
    size, transforms = stream.batch_size, stream.transforms
    if stream.is_random:
        seed = data.seed + stream_id(name)
        chosen = subset.choose_records(data, records) if name == "train" else None
        batches_of_run = Batches(records, batch_size=size, seed=seed, transforms=transforms, rows=rows, chosen=chosen)
        yield from (batches_of_run[number] for number in range(part.start // size, -(-part.stop // size)))
        return
    batches = evaluation_batches(records, batch_size=size, rows=rows, transforms=transforms, begin=part.start)
    yield from (batch for _, batch in zip(range(part.start, part.stop, size), batches, strict=False))


def _shard_rows(fields: Fields, size: int) -> int:
    """Return the number of rows per shard: at most `SHARD`, at most about `SHARD_BYTES`, rounded up to batches."""
    row = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in fields.values())
    return -(-min(SHARD, max(1, SHARD_BYTES // row)) // size) * size


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command `jaxdistill cache`, which writes teacher outputs to disk, and return its exit code.

    Args:
        argv: arguments of the command; None means `sys.argv[1:]`.
    """
    return cli.run_command(cli.parser("cache", __doc__), argv, lambda options, config: write(config, Console()))
