"""Read some training examples of a run, on which a trained model is measured."""

from collections.abc import Iterator

import numpy as np

from jaxdistill.data.pipeline import Pipeline
from jaxdistill.data.stream import Batch, Batches, Phases

ROWS = 32  # rows of a batch; no result depends on it


def samples(data: Pipeline, count: int, chosen: np.ndarray | Phases | None = None) -> Iterator[Batch]:
    """Yield the first `count` training examples of a run in batches, in training order, without random transforms.

    Every batch has `ROWS` rows; the rows beyond the last example have the mask 0.

    Args:
        data: data pipeline of the run.
        count: number of examples; if there are fewer records, each record is used once.
        chosen: numbers of the records to draw from, or None for all records. If the run has several phases (parts of
            the training with their own records), the records of the first phase are used.
    """
    pool = chosen.pools[0] if isinstance(chosen, Phases) else chosen
    stream = data.streams["train"]
    deterministic, records = [each for each in stream.transforms if each.draws == 0], data.open(stream)
    batches = Batches(records, batch_size=ROWS, seed=data.seed, transforms=deterministic, rows=slice(None), chosen=pool)
    count = min(count, len(records) if pool is None else len(pool))
    for first in range(0, count, ROWS):
        batch = batches[first // ROWS]
        valid = first + np.arange(ROWS) < count
        yield batch | {"mask": batch["mask"] * valid.reshape(-1, *[1] * (batch["mask"].ndim - 1))}
