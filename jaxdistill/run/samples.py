"""Read some training examples of a run, to measure a trained model on them: its heads, neurons or layers."""

from collections.abc import Iterator

import numpy as np

from jaxdistill.data.pipeline import Pipeline
from jaxdistill.data.stream import Batch, Batches

ROWS = 32  # rows of a batch; no result depends on it


def samples(data: Pipeline, count: int, chosen: np.ndarray | None = None) -> Iterator[Batch]:
    """Yield the first `count` training examples of a run in batches, in training order, without random transforms.

    Args:
        data: data pipeline of the run.
        count: number of examples; fewer if there are fewer records.
        chosen: numbers of the records to draw from; None: all.
    """
    stream = data.streams["train"]
    deterministic, records = [each for each in stream.transforms if each.draws == 0], data.open(stream)
    batches = Batches(
        records, batch_size=ROWS, seed=data.seed, transforms=deterministic, rows=slice(None), chosen=chosen
    )
    count = min(count, len(records) if chosen is None else len(chosen))
    for first in range(0, count, ROWS):
        batch = batches[first // ROWS]
        valid = first + np.arange(ROWS) < count
        yield batch | {"mask": batch["mask"] * valid.reshape(-1, *[1] * (batch["mask"].ndim - 1))}
