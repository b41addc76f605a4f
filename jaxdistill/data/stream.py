"""Batches of a run. A batch is a pure function of (seed, batch number), so the only state to save is the number.

Grain keeps the number, prefetches batches in a thread and resumes. All random numbers come from Philox, a
counter-based generator: any batch can be drawn without the batches before it, and numpy guarantees that its raw bits
never change.
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
Rows = slice | np.ndarray  # of a global batch: a range, or row numbers
DTYPES_32_BIT = {np.dtype("int64"): np.dtype("int32"), np.dtype("float64"): np.dtype("float32")}
ORDER, AUGMENTATION, SELECTION = 0, 1, 2  # purposes of random numbers: their sequences start 2^192 draws apart


class Transform(NamedTuple):
    """A transform of batches, applied on the host.

    draws: random numbers needed per row; with 0 the transform is applied in evaluation too
    apply: `(batch, uniforms) -> batch`, uniforms `[rows, draws]` in [0, 1); pure, does not modify its input
    """

    draws: int
    apply: Callable[[Batch, np.ndarray], Batch]


def random_words(seed: int, number: int, purpose: int, count: int) -> np.ndarray:
    """Return random 64-bit words, `[count]`."""
    key = np.array([seed, number], np.uint64)
    return np.random.Philox(key=key, counter=[0, 0, 0, purpose]).random_raw(count)


@functools.lru_cache(maxsize=4)  # a batch may span two epochs, and threads prefetch
def permutation(seed: int, epoch: int, records: int) -> np.ndarray:
    """Return the order of the records in an epoch, `[records]`. The array is cached: never write to it."""
    return np.argsort(random_words(seed, epoch, ORDER, records), kind="stable")


def uniforms(seed: int, number: int, rows: int, draws: int) -> np.ndarray:
    """Return the random numbers of a batch, `[rows, draws]` in [0, 1)."""
    return (random_words(seed, number, AUGMENTATION, rows * draws) >> 11).reshape(rows, draws) * 2.0**-53


class StoredFields(NamedTuple):
    """Fields that were computed before the run and are added to its batches, such as outputs of a cached teacher.

    records: the stored entries
    by_row: if true, row r of the run takes entry r, because the entries depend on random augmentation; otherwise a
        record takes the entry with its number
    """

    records: Records
    by_row: bool = False


class Phases(NamedTuple):
    """Pools of records that a run learns from one after the other.

    pools: record numbers of each phase
    steps: batches per phase; the last phase does not end
    """

    pools: tuple[np.ndarray, ...]
    steps: int


class Batches:
    """The batches of a run as a random-access source for Grain: item i is batch i, `{field: [rows, ...]}`.

    Row r of the run is record `chosen[permutation(epoch r // n)[r % n]]`. Every batch is therefore full, and an epoch
    may end inside a batch. Each phase has its own `chosen`, and counts its rows and epochs from its first batch.

    A batch has the fields of the records, `mask` (float32 ones) and `index` (int32, the record's number). Masks among
    the records' fields, such as a token mask, are kept. 64-bit numbers are converted to 32 bits.

    Args:
        records: the records to draw from.
        batch_size: rows of the global batch.
        seed: 0 or more.
        transforms: applied in order. Random numbers are drawn for all rows of the global batch, so that its content
            does not depend on the number of processes.
        rows: the rows of the global batch that this process needs.
        stored: fields to add, computed before the run for these records or rows.
        chosen: numbers of the records to draw from, rising, or phases of them; None: all records. `index` and `stored`
            refer to the original numbers.
    """

    def __init__(
        self,
        records: Records,
        *,
        batch_size: int,
        seed: int,
        transforms: Sequence[Transform],
        rows: Rows,
        stored: Sequence[StoredFields] = (),
        chosen: np.ndarray | Phases | None = None,
    ) -> None:
        self.records, self.batch_size, self.seed = records, batch_size, seed
        pool = np.arange(len(records)) if chosen is None else chosen
        self.phases = pool if isinstance(pool, Phases) else Phases((pool,), sys.maxsize)
        self.transforms, self.rows, self.stored = tuple(transforms), rows, tuple(stored)

    def __len__(self) -> int:
        return sys.maxsize // self.batch_size  # endless, but row numbers must fit in an integer

    def __getitem__(self, number: int) -> Batch:
        run_rows = number * self.batch_size + np.arange(self.batch_size)[self.rows]
        index = self._record_numbers(run_rows, min(number // self.phases.steps, len(self.phases.pools) - 1))
        batch = gather(self.records, index, np.ones(len(index), np.float32))
        draws = uniforms(self.seed, number, self.batch_size, sum(t.draws for t in self.transforms))[self.rows]
        batch = without_text(_transformed(batch, self.transforms, draws))
        for entries, by_row in self.stored:
            batch |= entries.take(run_rows if by_row else index)
        return batch

    def _record_numbers(self, run_rows: np.ndarray, phase: int) -> np.ndarray:
        """Return the record numbers of these rows of the run, `[rows]`; all rows are in one phase."""
        pool = self.phases.pools[phase]
        first_row = phase * self.phases.steps * self.batch_size if phase else 0
        epochs, places = np.divmod(run_rows - first_row, len(pool))
        # A phase has fewer epochs than rows. So `first_row + epoch` gives every epoch of every phase its own number.
        orders = {epoch: permutation(self.seed, first_row + epoch, len(pool)) for epoch in np.unique(epochs).tolist()}
        return pool[np.concatenate([order[places[epochs == epoch]] for epoch, order in orders.items()])]


def train_stream(
    records: Records,
    *,
    batch_size: int,
    seed: int,
    transforms: Sequence[Transform],
    rows: Rows,
    stored: Sequence[StoredFields] = (),
    chosen: np.ndarray | Phases | None = None,
) -> "grain.DatasetIterator[Batch]":
    """Return `Batches` as an endless prefetching iterator; `get_state()` and `set_state(state)` resume it exactly."""
    import grain

    draw: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "transforms": transforms}
    batches = Batches(records, **draw, rows=rows, stored=stored, chosen=chosen)
    # For arrays in memory, one thread hides all the work, and a second one would only compete for the interpreter.
    # For files, use as many threads as Grain does by default. A buffer element is a whole batch, so keep few of them.
    threads = 1 if all(source.in_memory for source in (records, *(entries for entries, _ in stored))) else 16
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, threads))
    return iter(grain.MapDataset.source(batches).to_iter_dataset(options))


def evaluation_batches(
    records: Records,
    *,
    batch_size: int,
    rows: Rows,
    transforms: Sequence[Transform] = (),
    stored: Sequence[StoredFields] = (),
    begin: int = 0,
) -> Iterator[Batch]:
    """Yield all records once, in order. The last batch is filled with repeats of mask 0, to keep one compiled shape.

    Random transforms are left out: models are evaluated on unaugmented data. `begin` is the first record.
    """
    deterministic = [transform for transform in transforms if transform.draws == 0]
    for first in range(begin, len(records), batch_size):
        index = first + np.arange(batch_size)[rows]
        mask = (index < len(records)).astype(np.float32)
        index = np.minimum(index, len(records) - 1)
        batch = without_text(_transformed(gather(records, index, mask), deterministic, np.zeros((len(index), 0))))
        for entries, _ in stored:
            batch |= entries.take(index)
        yield batch


def gather(records: Records, index: np.ndarray, mask: np.ndarray) -> Batch:
    """Return a batch of records, with the fields `index` and `mask`.

    Masks among the records' fields are multiplied by `mask`.

    Args:
        records: the records to take from.
        index: record numbers, `[rows]`.
        mask: `[rows]`, float32; 0 for a row that only fills the batch.
    """
    batch = {field: _to_32_bit(field, column) for field, column in records.take(index).items()}
    record_masks = {field: values for field, values in batch.items() if field.rpartition("/")[2] == "mask"}
    record_masks.setdefault("mask", np.ones(len(index), np.float32))
    masks = {
        field: mask.reshape(-1, *[1] * (values.ndim - 1)) * values.astype(np.float32)
        for field, values in record_masks.items()
    }
    return {**batch, **masks, "index": index.astype(np.int32)}


def _to_32_bit(field: str, column: np.ndarray) -> np.ndarray:
    """Convert labels to int32 and 64-bit numbers to 32 bits, as JAX would do on the device."""
    dtype = np.dtype("int32") if field == "label" else DTYPES_32_BIT.get(column.dtype, column.dtype)
    return column.astype(dtype, copy=False)


def _transformed(batch: Batch, transforms: Sequence[Transform], draws: np.ndarray) -> Batch:
    for transform in transforms:
        transform_draws, draws = draws[:, : transform.draws], draws[:, transform.draws :]
        batch = transform.apply(batch, transform_draws)
    return batch


def without_text(batch: Batch) -> Batch:
    """Drop text fields, such as a file name, which cannot be moved to a device.

    Raises:
        ConfigError: the arrays of a field differ in shape, so that they cannot be stacked.
    """
    for field, value in batch.items():
        if value.dtype == object and not isinstance(value[0], str | bytes):
            cure = "Add a transform that gives it one shape, such as resize(size=224)."
            raise ConfigError("data.augment", f"the shape of {field!r} differs from record to record. {cure}")
    return {field: value for field, value in batch.items() if value.dtype != object}


def stream_id(stream: str) -> int:
    """Return the number that keys a stream's random draws: 0 for `train`, else a hash of the name.

    Since it depends on the name alone, adding a stream does not change the batches of the others.
    """
    return 0 if stream == "train" else zlib.crc32(stream.encode()) & 0x7FFFFFFF
