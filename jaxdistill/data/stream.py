"""Make the training and evaluation batches of a run.

A training batch is a pure function of (seed, batch number), so the only iterator state to save is the batch number.
Grain keeps the batch number, prefetches batches in threads and resumes. All random numbers come from NumPy's
counter-based generator Philox: any batch can be drawn without the batches before it, and NumPy guarantees that the raw
bits of Philox never change.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxdistill.core.errors import ConfigError
from jaxdistill.data.records import Records
from jaxdistill.data.shuffle import AUGMENTATION, random_words, records_at

if TYPE_CHECKING:
    import grain

Batch = dict[str, np.ndarray]
RowNumbers = slice | np.ndarray  # rows (examples) of a global batch: a range, or their numbers
DTYPES_32_BIT = {np.dtype("int64"): np.dtype("int32"), np.dtype("float64"): np.dtype("float32")}


class Transform(NamedTuple):
    """A transform of batches, such as an augmentation, applied on the host before a batch is moved to the devices.

    draws: random numbers that the transform needs per example; a transform with 0 is deterministic, and evaluation
        applies it too
    apply: `(batch, uniforms) -> batch`, a pure function that does not modify its arguments; `uniforms` `[rows, draws]`
        holds random numbers in [0, 1), one row for each example of the batch
    reads: text that changes if a file which the transform reads changes, so that caches of its results can detect this;
        empty if the transform reads no file
    """

    draws: int
    apply: Callable[[Batch, np.ndarray], Batch]
    reads: str = ""


def uniforms(seed: int, number: int, rows: int, draws: int) -> np.ndarray:
    """Return the uniform random numbers for the transforms of one batch, `[rows, draws]` in [0, 1).

    Args:
        seed: random seed.
        number: number of the batch.
        rows: number of examples in the batch.
        draws: random numbers per example.
    """
    return (random_words(seed, number, AUGMENTATION, rows * draws) >> 11).reshape(rows, draws) * 2.0**-53


class StoredFields(NamedTuple):
    """Arrays that were computed before a run and are added to its batches as fields, such as cached teacher outputs.

    records: the stored arrays, accessed by number
    by_row: if false, array i belongs to example i of the data set; if true, to the i-th example in the order of
        training, counted over all epochs. The latter is needed for arrays that were computed from randomly augmented
        inputs, which differ from epoch to epoch
    """

    records: Records
    by_row: bool = False


class Phases(NamedTuple):
    """The phases of a run, which follow one another, and the examples of the data set that each phase trains on.

    pools: for each phase, the numbers of its examples
    steps: batches per phase; the last phase continues to the end of the run
    """

    pools: tuple[np.ndarray | range, ...]
    steps: int


class Batches:
    """The training batches of a run as a random-access source for Grain: item i is batch i, `{field: [rows, ...]}`.

    A row is an example of a batch, and a record is an example of the data set. Rows are numbered through the whole run:
    row r is record `chosen[records_at(r % n, seed, r // n, n)]`, where n is the length of `chosen`. Every batch is
    therefore full, and an epoch may end inside a batch. In a run with phases, each phase has its own `chosen`, and rows
    and epochs are counted from the first batch of the phase.

    A batch has all fields of the records except texts. Two fields are added: `index` (int32, the record number of each
    row), and `mask` (float32 ones) if the records have no mask of their own, such as a token mask. 64-bit numbers are
    converted to 32 bits.

    Args:
        records: the records to draw from.
        batch_size: number of rows in the global batch.
        seed: random seed of order and augmentation, 0 or more.
        transforms: transforms of the batches, in order. Random numbers are drawn for all rows of the global batch, so
            that the content of a batch does not depend on the number of processes.
        rows: the rows of the global batch to return, which are those that this process needs.
        stored: arrays that were computed before the run and are added as fields.
        chosen: sorted numbers of the records to draw from, or phases with such numbers; None means all records.
    """

    def __init__(
        self,
        records: Records,
        *,
        batch_size: int,
        seed: int,
        transforms: Sequence[Transform],
        rows: RowNumbers,
        stored: Sequence[StoredFields] = (),
        chosen: np.ndarray | range | Phases | None = None,
    ) -> None:
        self.records, self.batch_size, self.seed = records, batch_size, seed
        pool = range(len(records)) if chosen is None else chosen  # a range, which needs no memory for its numbers
        self.phases = pool if isinstance(pool, Phases) else Phases((pool,), sys.maxsize)
        self.transforms, self.rows, self.stored = tuple(transforms), rows, tuple(stored)

    def __len__(self) -> int:
        return sys.maxsize // self.batch_size  # endless, but row numbers must fit in an integer

    def __getitem__(self, number: int) -> Batch:
        run_rows = number * self.batch_size + np.arange(self.batch_size)[self.rows]
        index = self._record_numbers(run_rows, min(number // self.phases.steps, len(self.phases.pools) - 1))
        batch = gather(self.records, index, np.ones(len(index), np.float32))
        draws = uniforms(self.seed, number, self.batch_size, sum(t.draws for t in self.transforms))[self.rows]
        batch = without_text(transformed(batch, self.transforms, draws))
        for entries, by_row in self.stored:
            batch |= entries.take(run_rows if by_row else index)
        return batch

    def _record_numbers(self, run_rows: np.ndarray, phase: int) -> np.ndarray:
        """Return the number of the record (example of the data set) in each row of the run's batches, `[rows]`.

        Args:
            run_rows: row numbers, counted from the start of the run.
            phase: number of the phase that all these rows belong to.
        """
        pool = self.phases.pools[phase]
        first_row = phase * self.phases.steps * self.batch_size if phase else 0
        epochs, places = np.divmod(run_rows - first_row, len(pool))
        # A phase has fewer epochs than rows. So `first_row + epoch` gives every epoch of every phase its own number.
        numbers = np.concatenate(
            [
                records_at(places[epochs == epoch], self.seed, first_row + epoch, len(pool))
                for epoch in np.unique(epochs).tolist()
            ]
        )
        return numbers if isinstance(pool, range) else pool[numbers]


def train_stream(
    records: Records,
    *,
    batch_size: int,
    seed: int,
    transforms: Sequence[Transform],
    rows: RowNumbers,
    stored: Sequence[StoredFields] = (),
    chosen: np.ndarray | Phases | None = None,
) -> "grain.DatasetIterator[Batch]":
    """Return the training batches of a run as an endless Grain iterator that prefetches.

    `get_state()` and `set_state(state)` of the iterator save and resume it exactly. See `Batches` for the content of a
    batch.

    Args:
        records: the examples of the data set.
        batch_size: number of examples in the global batch.
        seed: random seed of order and augmentation, 0 or more.
        transforms: transforms of the batches, in order.
        rows: the rows (examples) of the global batch to return, which are those that this process needs.
        stored: arrays that were computed before the run and are added as fields.
        chosen: sorted numbers of the examples to train on, or phases with such numbers; None means all examples.
    """
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
    rows: RowNumbers,
    transforms: Sequence[Transform] = (),
    stored: Sequence[StoredFields] = (),
    begin: int = 0,
) -> Iterator[Batch]:
    """Yield the batches of one pass over the examples of a data set, in order.

    All batches have the same shape, so that the model compiles once: the last batch is filled with copies of the last
    example, and the field `mask` is 0 for these copies.

    Args:
        records: the examples to evaluate on.
        batch_size: number of examples in the global batch.
        rows: the rows (examples) of the global batch to return, which are those that this process needs.
        transforms: transforms of the batches, in order. Random transforms are skipped, so that evaluation uses
            unaugmented data.
        stored: arrays that were computed before the run, one entry per example, and are added as fields.
        begin: number of the first example.
    """
    deterministic = [transform for transform in transforms if transform.draws == 0]
    for first in range(begin, len(records), batch_size):
        index = first + np.arange(batch_size)[rows]
        mask = (index < len(records)).astype(np.float32)
        index = np.minimum(index, len(records) - 1)
        batch = without_text(transformed(gather(records, index, mask), deterministic, np.zeros((len(index), 0))))
        for entries, _ in stored:
            batch |= entries.take(index)
        yield batch


def gather(records: Records, index: np.ndarray, mask: np.ndarray) -> Batch:
    """Stack examples (records) of a data set into a batch, and add the fields `index` and `mask`.

    The fields are the arguments of the same names. If the examples have masks already, which are fields named `mask` or
    ending in `/mask`, these are multiplied by the argument `mask`. Labels are converted to int32, and 64-bit numbers to
    32 bits.

    Args:
        records: the examples of the data set.
        index: numbers of the examples to stack, `[rows]`.
        mask: weight of each example of the batch, `[rows]` float32; 0 for an example that only fills the batch.
    """
    batch = {field: _to_32_bit(field, column) for field, column in records.take(index).items()}
    record_masks = {field: values for field, values in batch.items() if field.rpartition("/")[2] == "mask"}
    record_masks.setdefault("mask", np.ones(len(index), np.float32))
    masks = {
        field: mask.reshape(-1, *[1] * (values.ndim - 1)) * values.astype(np.float32)
        for field, values in record_masks.items()
    }
    return {**batch, **masks, "index": (index & 0x7FFFFFFF).astype(np.int32)}  # unique for up to 2^31 records


def _to_32_bit(field: str, column: np.ndarray) -> np.ndarray:
    """Convert labels to int32 and 64-bit numbers to 32 bits, as JAX would do on the device."""
    dtype = np.dtype("int32") if field == "label" else DTYPES_32_BIT.get(column.dtype, column.dtype)
    return column.astype(dtype, copy=False)


def transformed(batch: Batch, transforms: Sequence[Transform], draws: np.ndarray) -> Batch:
    """Apply transforms to a batch, in order.

    Args:
        batch: the batch.
        transforms: the transforms.
        draws: uniform random numbers for all transforms, `[rows, sum of their draws]`.

    Raises:
        ConfigError: a transform returns another number of rows.
    """
    for transform in transforms:
        transform_draws, draws = draws[:, : transform.draws], draws[:, transform.draws :]
        rows, batch = len(next(iter(batch.values()))), transform.apply(batch, transform_draws)
        if wrong := [field for field, column in batch.items() if len(column) != rows]:
            problem = f"a transform returns {len(batch[wrong[0]])} rows of {wrong[0]!r} for {rows}"
            raise ConfigError("data.augment", f"{problem}; it must return as many as it gets.")
    return batch


def without_text(batch: Batch) -> Batch:
    """Return a batch without its text fields, such as file names, because text cannot be moved to a device.

    Raises:
        ConfigError: the arrays of a field differ in shape from example to example, so that they cannot be stacked.
    """
    for field, value in batch.items():
        if value.dtype == object and not isinstance(value[0], str | bytes):
            shapes = [np.shape(x) for x in value]
            other = next((shape for shape in shapes if shape != shapes[0]), None)  # None: it is in another batch
            rest = "another shape" if other is None else str(list(other))
            problem = f"{field!r} has the shape {list(shapes[0])} in one record and {rest} in another"
            if len(shapes[0]) < 3:
                raise ConfigError("data.name", f"{problem}. Give all records one shape.")
            raise ConfigError("data.augment", f"{problem}. Add a transform, such as resize(size=224).")
    return {field: value for field, value in batch.items() if value.dtype != object}
