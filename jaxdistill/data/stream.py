"""Batches of a run. A batch is a pure function of (seed, batch number): there is nothing to save but the number.

Grain keeps that number, works ahead in a thread and resumes. All draws come from Philox, a counter-based generator:
any batch can be drawn without those before it, and numpy promises that its raw bits never change.
"""

import functools
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxdistill.core.errors import ConfigError
from jaxdistill.data.records import Records

if TYPE_CHECKING:
    import grain

Batch = dict[str, np.ndarray]
Rows = slice | np.ndarray  # of a global batch: a range, or their numbers
NARROW = {np.dtype("int64"): np.dtype("int32"), np.dtype("float64"): np.dtype("float32")}
ORDER, AUGMENTATION, SELECTION = 0, 1, 2  # what is drawn: sequences of a key, 2^192 draws apart


class Transform(NamedTuple):
    """A change of a batch, on the host.

    draws: how many random numbers it needs for a row; with 0 it is a part of evaluation too
    apply: `(batch, uniforms) -> batch`, uniforms `[rows, draws]` in [0, 1); pure, it leaves its input alone
    """

    draws: int
    apply: Callable[[Batch, np.ndarray], Batch]


def raw(seed: int, number: int, purpose: int, count: int) -> np.ndarray:
    """Random 64-bit words, `[count]`."""
    key = np.array([seed, number], np.uint64)
    return np.random.Philox(key=key, counter=[0, 0, 0, purpose]).random_raw(count)


@functools.lru_cache(maxsize=4)  # a batch may meet two epochs, and threads work ahead
def permutation(seed: int, epoch: int, records: int) -> np.ndarray:
    """The order of an epoch, `[records]`; shared, so never write to it."""
    return np.argsort(raw(seed, epoch, ORDER, records), kind="stable")


def uniforms(seed: int, number: int, rows: int, draws: int) -> np.ndarray:
    """The random numbers of a batch, `[rows, draws]` in [0, 1)."""
    return (raw(seed, number, AUGMENTATION, rows * draws) >> 11).reshape(rows, draws) * 2.0**-53


class Beside(NamedTuple):
    """Further fields of a batch that were written ahead: outputs of a cached teacher.

    records: to take them from
    by_row: whether row r of the run has entry r, because augmentation made it what it is; else a record has the entry
        of its number
    """

    records: Records
    by_row: bool = False


class Phases(NamedTuple):
    """Records that come one pool after the other.

    pools: of each phase, the numbers of its records
    steps: batches of a phase; the last one goes on
    """

    pools: tuple[np.ndarray, ...]
    steps: int


class Batches:
    """The run as a random-access source for Grain: item i is batch i, `{field: [rows, ...]}`.

    Row r of the run is record `chosen[permutation(epoch r // n)[r % n]]`, so that every batch is full and an epoch may
    end inside one. In phases, each has its own `chosen`, and its rows and epochs count from where it begins. Beside the
    records' fields a batch holds `mask` (float32 ones) and `index` (int32, the record's number). A mask of the records'
    own, such as one of tokens, is kept where the row counts. Numbers of 64 bits come as 32.

    Args:
        records: what to draw from.
        batch_size: rows of the global batch.
        seed: 0 or more.
        transforms: applied in order. Their draws are made for all rows of the global batch, so that its content is the
            same however many processes share it.
        rows: which rows of the global batch this process needs.
        beside: further fields, written ahead for these records or rows.
        chosen: the numbers of the records to draw from, rising, or phases of them; None: all. `index` and `beside` keep
            to the numbers.
    """

    def __init__(
        self,
        records: Records,
        *,
        batch_size: int,
        seed: int,
        transforms: Sequence[Transform],
        rows: Rows,
        beside: Sequence[Beside] = (),
        chosen: np.ndarray | Phases | None = None,
    ) -> None:
        self.records, self.batch_size, self.seed = records, batch_size, seed
        whole = np.arange(len(records)) if chosen is None else chosen
        self.phases = whole if isinstance(whole, Phases) else Phases((whole,), sys.maxsize)
        self.transforms, self.rows, self.beside = tuple(transforms), rows, tuple(beside)

    def __len__(self) -> int:
        return sys.maxsize // self.batch_size  # a run has no end of its own, but its rows must be countable

    def __getitem__(self, number: int) -> Batch:
        numbers = number * self.batch_size + np.arange(self.batch_size)[self.rows]
        index = self._records_of(numbers, min(number // self.phases.steps, len(self.phases.pools) - 1))
        batch = gather(self.records, index, np.ones(len(index), np.float32))
        draws = uniforms(self.seed, number, self.batch_size, sum(t.draws for t in self.transforms))[self.rows]
        batch = as_numbers(_transformed(batch, self.transforms, draws))
        for entries, by_row in self.beside:
            batch |= entries.take(numbers if by_row else index)
        return batch

    def _records_of(self, rows: np.ndarray, phase: int) -> np.ndarray:
        """The records of these rows of the run, `[rows]`; a batch lies in one phase."""
        pool = self.phases.pools[phase]
        begin = phase * self.phases.steps * self.batch_size if phase else 0
        epochs, places = np.divmod(rows - begin, len(pool))
        # epochs of unlike phases are drawn apart: there are fewer of them than there are rows
        orders = {epoch: permutation(self.seed, begin + epoch, len(pool)) for epoch in np.unique(epochs).tolist()}
        return pool[np.concatenate([order[places[epochs == epoch]] for epoch, order in orders.items()])]


def train_stream(
    records: Records,
    *,
    batch_size: int,
    seed: int,
    transforms: Sequence[Transform],
    rows: Rows,
    beside: Sequence[Beside] = (),
    chosen: np.ndarray | Phases | None = None,
) -> "grain.DatasetIterator[Batch]":
    """`Batches` as an endless iterator that works ahead; `get_state()` and `set_state(state)` resume it exactly."""
    import grain

    draw: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "transforms": transforms}
    batches = Batches(records, **draw, rows=rows, beside=beside, chosen=chosen)
    # For arrays in memory one thread hides all the work, and a second one would only fight it for the interpreter;
    # files are waited for, by as many threads as Grain's own default. A buffer element is a whole batch: keep few.
    threads = 1 if all(source.in_memory for source in (records, *(entries for entries, _ in beside))) else 16
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, threads))
    return iter(grain.MapDataset.source(batches).to_iter_dataset(options))


def evaluation_batches(
    records: Records,
    *,
    batch_size: int,
    rows: Rows,
    transforms: Sequence[Transform] = (),
    beside: Sequence[Beside] = (),
    begin: int = 0,
) -> Iterator[Batch]:
    """All records once, in order; the last batch is filled with repeats of mask 0, since a new shape would compile.

    Transforms that draw are left out: a student is measured on data as they are. `begin` is the first record.
    """
    fixed = [transform for transform in transforms if transform.draws == 0]
    for first in range(begin, len(records), batch_size):
        index = first + np.arange(batch_size)[rows]
        mask = (index < len(records)).astype(np.float32)
        index = np.minimum(index, len(records) - 1)
        batch = as_numbers(_transformed(gather(records, index, mask), fixed, np.zeros((len(index), 0))))
        for entries, _ in beside:
            batch |= entries.take(index)
        yield batch


def gather(records: Records, index: np.ndarray, mask: np.ndarray) -> Batch:
    """The records of these numbers, with their numbers and what counts of them.

    Args:
        index: `[rows]`.
        mask: `[rows]`, float32; 0 for a row that only fills a batch.
    """
    batch = {field: _narrow(field, column) for field, column in records.take(index).items()}
    masks = {field: own for field, own in batch.items() if field.rpartition("/")[2] == "mask"}
    masks.setdefault("mask", np.ones(len(index), np.float32))
    counts = {name: mask.reshape(-1, *[1] * (own.ndim - 1)) * own.astype(np.float32) for name, own in masks.items()}
    return {**batch, **counts, "index": index.astype(np.int32)}


def _narrow(field: str, column: np.ndarray) -> np.ndarray:
    """Labels as int32, and no numbers of 64 bits, which JAX would cut on the device."""
    narrow = np.dtype("int32") if field == "label" else NARROW.get(column.dtype, column.dtype)
    return column.astype(narrow, copy=False)


def _transformed(batch: Batch, transforms: Sequence[Transform], draws: np.ndarray) -> Batch:
    for transform in transforms:
        own, draws = draws[:, : transform.draws], draws[:, transform.draws :]
        batch = transform.apply(batch, own)
    return batch


def as_numbers(batch: Batch) -> Batch:
    """Drops text, such as a record's file name, which cannot go to a device; refuses arrays that cannot be stacked."""
    for field, value in batch.items():
        if value.dtype == object and not isinstance(value[0], str | bytes):
            cure = "Add a transform that gives it one shape, such as resize(size=224)."
            raise ConfigError("data.augment", f"the shape of {field!r} differs from record to record. {cure}")
    return {field: value for field, value in batch.items() if value.dtype != object}


def stream_number(stream: str) -> int:
    """What a stream's draws are keyed by: its name, so that a further stream changes nothing for `train`."""
    return 0 if stream == "train" else zlib.crc32(stream.encode()) & 0x7FFFFFFF
