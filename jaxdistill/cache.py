"""Writes what teachers say of the data, once, so that runs train without the teachers in memory.

python -m jaxdistill.cache --config configs/x.py [--config.a.b=value ...]

Every teacher with a `cache` is run over every stream of the config and over its test records. Shards that are written
already are kept, so that the same command goes on where it was stopped.
A cache is given by --config.teachers.NAME.cache="outputs(folder='FOLDER', dtype='float16', top=8, layers=(0, 6))".
"""

import functools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxdistill import build, cached, commands, fits, meshes, selected, sources, staged, teachers
from jaxdistill.data.datasets import open_records
from jaxdistill.data.describe import Description
from jaxdistill.data.records import Records
from jaxdistill.data.store import Fields, Manifest, StoreError, missing, read_manifest, write_manifest, write_shard
from jaxdistill.data.stream import Batches, Rows, evaluation_batches
from jaxdistill.errors import ConfigError
from jaxdistill.evaluate import cost
from jaxdistill.models.cached import fields_of, saying
from jaxdistill.parallel.compile import jit_evaluate, local_rows
from jaxdistill.steps.observe import stream_number
from jaxdistill.types import Factored

SHARD = 4096  # rows at most, in whole batches
SHARD_BYTES = 2**26  # about as many at most: a shard is gathered in memory, and what was not sealed is made again


def write(config: ConfigDict, console: Console) -> None:
    """Writes the caches of a config.

    Raises:
        ConfigError: for whatever is wrong with the config, the data or a teacher.
    """
    if jax.process_count() > 1:
        raise ConfigError("distributed", "a cache is written by one process, over all of its devices.")
    names = [name for name, entry in config.teachers.items() if entry.cache]
    if not names:
        raise ConfigError("teachers", "none has a cache. Add teachers.NAME.cache=\"outputs(folder='...')\".")
    described = staged.described(config)
    folder, data = sources.data_folder(config), config.data
    mesh = meshes.mesh(meshes.check_mesh(config, jax.device_count()))
    for name in names:
        teacher = _Teacher(config, name, described, mesh)
        for stream, read in cached.streams(config).items():
            records = open_records(data.name, read.text, folder, read.path, read.key, data.tokens)
            teacher.write(stream, records, console)


class _Teacher:
    """A living teacher, and how it fills its stores."""

    def __init__(self, config: ConfigDict, name: str, described: Mapping[str, Description], mesh: Any):
        self.config, self.name, self.described, self.mesh = config, name, described, mesh
        self.keep, path = build.keep_of(config, name), f"teachers.{name}.model"
        self.model = build.teacher(config, name)
        self.batch = sources.batch_shapes(config, {s: d for s, d in described.items() if s != "test"})["train"]
        said, variables = fits.outputs(self.model, path, self.batch)
        self.classes, self.states = said.logits.shape[-1], len(said.hidden_states)
        self.pieces = config.chunks if isinstance(said.logits, Factored) else 1
        streams = cached.streams(config)
        try:
            self.fields = {stream: fields_of(said, cached.kept(self.keep, stream), self.pieces) for stream in streams}
        except ValueError as error:
            raise ConfigError(f"teachers.{name}.cache", f"{error}.") from None
        fits.check_pretrained(self.model, path, self.batch, complete=not config.teachers[name].checkpoint)
        self.identities = {stream: cached.identity(config, name, stream) for stream in streams}
        self.variables = teachers.load(config, name, self.model, variables, mesh)
        kept = {stream: cached.kept(self.keep, stream) for stream in streams}
        say = {stream: saying(self.model, keep, self.pieces) for stream, keep in kept.items()}
        self.say = {stream: jit_evaluate(each, self.variables, mesh) for stream, each in say.items()}

    def write(self, stream: str, records: Records, console: Console) -> None:
        """Fills the store of a stream."""
        size = sources.stream_batch_size(self.config, "train" if stream == "test" else stream)
        rows, folder = cached.rows_of(self.config, stream, self.described), cached.folder_of(self.keep, stream)
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
            raise ConfigError(f"teachers.{self.name}.cache", f"{error}.") from None
        left = missing(folder, manifest)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task(f"{self.name} {stream}", total=sum(part.stop - part.start for _, part in left))
            for number, part in left:
                write_shard(
                    folder, number, self._shard(stream, records, size, part, functools.partial(progress.advance, task))
                )
        console.print(f"{self.name:>12}  {stream}: {rows} rows in {folder}")

    def _cost(self, folder: Path) -> dict[str, Any]:
        """What the table says of the teacher; taken over from a cache that was begun, since latency varies."""
        try:
            return read_manifest(folder).about["cost"]
        except StoreError:
            here = jax.device_put(self.variables, jax.devices()[0])
            one = {key: np.zeros((1, *x.shape[1:]), x.dtype) for key, x in self.batch.items()}
            return cost(self.model, here, one)

    def _shard(self, stream: str, records: Records, size: int, part: slice, advance: Any) -> dict[str, np.ndarray]:
        found: dict[str, list[np.ndarray]] = {name: [] for name in self.fields[stream]}
        count = part.stop - part.start
        for batch in _batches(self.config, stream, records, size, part, local_rows(self.mesh, size)):
            for name, x in jax.device_get(self.say[stream](batch)).items():
                found[name].append(x)
            advance(min(size, count))
        return {name: np.concatenate(parts)[:count] for name, parts in found.items()}


def _batches(
    config: ConfigDict, stream: str, records: Records, size: int, part: slice, rows: Rows
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of a shard: records in their order, or those of the run where augmentation draws."""
    transforms = sources.transforms(config)["train" if stream == "test" else stream]
    if cached.draws(config, stream):
        seed = config.seed + stream_number(stream)
        chosen = selected.chosen(config, records) if stream == "train" else None
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
    words = commands.parser("cache", __doc__)
    return commands.answer(words, argv, lambda known, config: write(config, Console()))


if __name__ == "__main__":
    sys.exit(run())
