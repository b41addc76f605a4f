"""The config of the run-level tests: made-up images, three small perceptrons, 40 steps; all of it in seconds."""

import numpy as np

from jaxdistill.config import make
from jaxdistill.registry import datasets


class Blobs(list):
    """Records, and how many classes they have."""

    classes = 4


@datasets.register
def blobs(split: str) -> Blobs:
    """Four patterns of 8 x 8 pixels under noise. 250 and 90 are multiples of no batch size."""
    patterns = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1))
    draw, rows = (np.random.default_rng(1), 250) if split == "train" else (np.random.default_rng(2), 90)
    labels = np.arange(rows) % 4
    images = np.clip(patterns[labels] + draw.normal(0, 120, (rows, 8, 8, 1)), 0, 255).astype(np.uint8)
    return Blobs({"image": image, "label": label} for image, label in zip(images, labels, strict=True))


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
