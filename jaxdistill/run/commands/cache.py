"""Writes what teachers say of the data, once, so that runs train without the teachers in memory.

jaxdistill cache --config configs/x.py [--config.a.b=value ...]

Every teacher with a `cache` is run over every stream of the config and over its test records. Shards that are written
already are kept, so that the same command goes on where it was stopped.
A cache is given by --config.teachers.NAME.cache="outputs(folder='FOLDER', dtype='float16', top=8, layers=(0, 6))".
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

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.types import Factored
from jaxdistill.data.pipeline import Pipeline
from jaxdistill.data.records import Records
from jaxdistill.data.store import Fields, Manifest, StoreError, missing, read_manifest, write_manifest, write_shard
from jaxdistill.data.stream import Batches, Rows, evaluation_batches, stream_number
from jaxdistill.models.abstract import abstract_outputs
from jaxdistill.models.hub.check import check_pretrained
from jaxdistill.parallel.compile import jit_evaluate, local_rows
from jaxdistill.run import subset
from jaxdistill.run.commands import cli
from jaxdistill.run.config import Config
from jaxdistill.run.resolve import Resolved, resolve
from jaxdistill.teachers.cache import KEY, folder_of, identity, keep_of, kept, rows_of
from jaxdistill.teachers.codec import encoder, fields_of
from jaxdistill.teachers.load import load

SHARD = 4096  # rows at most, in whole batches
SHARD_BYTES = 2**26  # about as many at most: a shard is gathered in memory, and what was not sealed is made again


def write(config: Config, console: Console) -> None:
    """Writes the caches of a config.

    Raises:
        ConfigError: for whatever is wrong with the config, the data or a teacher.
    """
    if jax.process_count() > 1:
        raise ConfigError("distributed", "a cache is written by one process, over all of its devices.")
    resolved = resolve(config, jax.devices())
    names = [name for name, entry in resolved.entries.items() if entry.options.get(KEY)]
    if not names:
        raise ConfigError("teachers", "none has a cache. Add teachers.NAME.cache=\"outputs(folder='...')\".")
    _ = resolved.data  # what is wrong with the data is told first
    for name in names:
        writer = _Writer(resolved, name)
        for stream, read in resolved.data.with_test.items():
            writer.write(stream, resolved.data.open(read), console)


class _Writer:
    """A live teacher, and how it fills its stores."""

    def __init__(self, resolved: Resolved, name: str):
        self.data, self.steps, config = resolved.data, resolved.config.steps, resolved.config
        self.teacher = teacher = resolved.live_teacher(name)
        path = f"{teacher.path}.{KEY}"
        self.keep, self.rows = keep_of(resolved.entries[name].options[KEY], path), self.data.shapes["train"]
        outputs, _ = abstract_outputs(teacher.network, f"{teacher.path}.model", self.rows)
        self.classes, self.states = outputs.logits.shape[-1], len(outputs.hidden_states)
        chunks = config.chunks if isinstance(outputs.logits, Factored) else 1
        keeps = {stream: kept(self.keep, stream) for stream in self.data.with_test}
        try:
            self.fields = {stream: fields_of(outputs, keep, chunks) for stream, keep in keeps.items()}
        except ValueError as error:
            raise ConfigError(path, f"{error}.") from None
        check_pretrained(teacher.network, f"{teacher.path}.model", self.rows, complete=not teacher.checkpoint)
        self.identities = {stream: identity(teacher, self.keep, self.data, stream) for stream in self.data.with_test}
        self.variables = load(teacher, self.rows)
        encoders = {stream: encoder(teacher.network, keep, chunks) for stream, keep in keeps.items()}
        self.encode = {stream: jit_evaluate(each, self.variables, teacher.mesh) for stream, each in encoders.items()}

    def write(self, stream: str, records: Records, console: Console) -> None:
        """Fills the store of a stream."""
        size, folder = self.data.with_test[stream].batch_size, folder_of(self.keep, stream)
        rows = rows_of(self.data, stream, self.steps)
        about = {
            "identity": self.identities[stream],
            "classes": self.classes,
            "states": self.states,
            "cost": self._cost(folder),
        }
        manifest = Manifest(rows, _shard_rows(self.fields[stream], size), self.fields[stream], about)
        try:
            write_manifest(folder, manifest)
        except StoreError as error:
            raise ConfigError(f"{self.teacher.path}.{KEY}", f"{error}.") from None
        left = missing(folder, manifest)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task(
                f"{self.teacher.name} {stream}", total=sum(part.stop - part.start for _, part in left)
            )
            for number, part in left:
                write_shard(
                    folder, number, self._shard(stream, records, size, part, functools.partial(progress.advance, task))
                )
        console.print(f"{self.teacher.name:>12}  {stream}: {rows} rows in {folder}")

    def _cost(self, folder: Path) -> dict[str, Any]:
        """What the table says of the teacher; taken over from a cache that was begun, since latency varies."""
        try:
            return read_manifest(folder).about["cost"]
        except StoreError:
            return self.teacher.cost(self.variables, self.rows)

    def _shard(self, stream: str, records: Records, size: int, part: slice, advance: Any) -> dict[str, np.ndarray]:
        found: dict[str, list[np.ndarray]] = {name: [] for name in self.fields[stream]}
        count = part.stop - part.start
        for batch in _batches(self.data, stream, records, part, local_rows(self.teacher.mesh, size)):
            for name, x in jax.device_get(self.encode[stream](batch)).items():
                found[name].append(x)
            advance(min(size, count))
        return {name: np.concatenate(parts)[:count] for name, parts in found.items()}


def _batches(data: Pipeline, name: str, records: Records, part: slice, rows: Rows) -> Iterator[dict[str, np.ndarray]]:
    """The batches of a shard: records in their order, or those of the run where augmentation draws."""
    stream = data.with_test[name]
    size, transforms = stream.batch_size, stream.transforms
    if stream.draws:
        seed = data.seed + stream_number(name)
        chosen = subset.chosen(data, records) if name == "train" else None
        run = Batches(records, batch_size=size, seed=seed, transforms=transforms, rows=rows, chosen=chosen)
        yield from (run[number] for number in range(part.start // size, -(-part.stop // size)))
        return
    batches = evaluation_batches(records, batch_size=size, rows=rows, transforms=transforms, begin=part.start)
    yield from (batch for _, batch in zip(range(part.start, part.stop, size), batches, strict=False))


def _shard_rows(fields: Fields, size: int) -> int:
    """Rows of a shard, a multiple of a batch's `size`; a row of a language model may take megabytes."""
    row = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in fields.values())
    return -(-min(SHARD, max(1, SHARD_BYTES // row)) // size) * size


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    words = cli.parser("cache", __doc__)
    return cli.answer(words, argv, lambda known, config: write(config, Console()))
