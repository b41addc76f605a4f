"""The config of tests of whole runs: made-up images, three small perceptrons and 40 steps, trained in seconds."""

import time

import numpy as np
from jaxdistill.config import make
from jaxdistill.registry import datasets, losses, transforms

from jaxdistill.data.stream import Transform


class Blobs(list):
    """A list of records with the number of their classes."""

    classes = 4


@datasets.register
def blobs(split: str) -> Blobs:
    """Draw four patterns of 8 x 8 pixels with noise; no split's size is a multiple of the batch size."""
    patterns = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1))
    seed, rows = {"train": (1, 250), "test": (2, 90), "extra": (3, 42)}[split]
    labels = np.arange(rows) % 4
    noise = np.random.default_rng(seed).normal(0, 120, (rows, 8, 8, 1))
    images = np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8)
    return Blobs({"image": image, "label": label} for image, label in zip(images, labels, strict=True))


@transforms.register
def pause(seconds: float) -> Transform:
    """Slow a run down and change nothing, so that a test can interrupt the run in the middle."""

    def apply(batch, uniforms):
        time.sleep(seconds)
        return batch

    return Transform(0, apply)


@losses.register
def breaks(at: int):
    """Return a loss that is 0 before the step `at`, and NaN from then on."""
    import jax.numpy as jnp

    from jaxdistill.losses.term import stateless

    return stateless(lambda signals: jnp.where(signals.step >= at, jnp.nan, 0.0 * signals.student.logits.sum(-1)))


def get_config():
    return make(
        steps=40,
        batch_size=32,
        student={"model": "mlp(widths=(8, 8), classes=4, dropout=0.1)"},
        teachers={"big": {"model": "mlp(widths=(16, 16), classes=4)", "steps": 40}},
        objective={"kd": {"weight": "linear(start=0.9, end=0.5)"}, "cross_entropy": {"weight": 0.1}},
        rate="cosine(start=0.01)",
        data={"name": "blobs", "augment": ("shift(pixels=1)",)},
        evaluate={"every": 10, "batch_size": 32},
        mesh={"data": 1},
        logging={"every": 5, "tensorboard": False},
    )
