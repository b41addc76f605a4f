"""Prepare test records to compare exported files with their model, and training records to calibrate quantisation."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from jaxdistill.core.notes import note
from jaxdistill.data.pipeline import Pipeline
from jaxdistill.data.stream import Batch, evaluation_batches, gather, transformed, without_text
from jaxdistill.export.network import Network, Rows

SAMPLES, SAMPLE_ROWS = 256, 32  # training records by which ranges of integers are chosen, and how many at once
LARGEST_OUTPUTS = 2**29  # most bytes of all outputs; fewer test records are used for larger ones


class Examples(NamedTuple):
    """Test records in the form of a network's inputs, with their labels.

    inputs: the arrays that the network reads, `{field: [examples, ...]}`
    labels: class of each example, `[examples]`, or of each token, `[examples, length]`; None without labels
    counts: boolean mask of the examples, `[examples]`, or tokens, `[examples, length]`, that count
    """

    inputs: dict[str, np.ndarray]
    labels: np.ndarray | None
    counts: np.ndarray


def test_examples(network: Network, data: Pipeline, size: int, records: int) -> Examples:
    """Return test records in the form of a network's inputs.

    Fewer records are returned, with a note, if the outputs for all of them would exceed `LARGEST_OUTPUTS` bytes.

    Args:
        network: the network that reads the records.
        data: data pipeline of the run.
        size: number of examples that are prepared at once.
        records: number of test records; 0 means all.
    """
    opened = data.open(data.test)
    shape = jax.eval_shape(network.function, network.shapes(1)).shape
    wanted = min(records or len(opened), len(opened))
    count = min(wanted, max(1, LARGEST_OUTPUTS // (int(np.prod(shape)) * 4)))
    if count < wanted:
        note(f"{count:,} of {len(opened):,} test records are used: outputs of more are too large")
    batches: list[Batch] = []
    for batch in evaluation_batches(opened, batch_size=size, rows=slice(None), transforms=data.test.transforms):
        batches.append(batch)
        if len(batches) * size >= count:
            break
    joined = lambda name: np.concatenate([batch[name] for batch in batches])[:count]
    labels = joined("label") if "label" in batches[0] else None
    return Examples({name: joined(name) for name in network.inputs}, labels, joined("mask") > 0)


def training_samples(network: Network, data: Pipeline) -> Iterator[Rows]:
    """Yield batches of training records, `{field: [rows, ...]}`, to calibrate the activation ranges of quantisation.

    At most `SAMPLES` records are used, at equal distances in the data set, without random augmentation.

    Args:
        network: the network that reads the records.
        data: data pipeline of the run.
    """
    stream = data.streams["train"]
    opened = data.open(stream)
    numbers = np.linspace(0, len(opened) - 1, min(SAMPLES, len(opened))).astype(int)
    deterministic = [transform for transform in stream.transforms if not transform.draws]
    for start in range(0, len(numbers), SAMPLE_ROWS):
        index = numbers[start : start + SAMPLE_ROWS]
        batch = gather(opened, index, np.ones(len(index), np.float32))
        batch = without_text(transformed(batch, deterministic, np.zeros((len(index), 0))))
        yield {name: batch[name] for name in network.inputs}
