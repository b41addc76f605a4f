"""Augmentations of images on the host: whole batches in numpy, uint8 stays uint8.

A batch holds them as `image`, `[rows, height, width, channels]`. Draws come as an argument, so that a batch is the
same on one process as on many, and after a resume.
"""

from typing import Literal

import numpy as np

from jaxdistill.data.stream import Batch, Transform
from jaxdistill.errors import ConfigError
from jaxdistill.registry import transforms


@transforms.register
def shift(pixels: int) -> Transform:
    """Moves each image by up to `pixels` in both directions; what comes in is zero.

    The jitter of the paper that began distillation (Hinton et al. 2015), and the padded crop of the CIFAR recipes.

    Raises:
        ValueError: `pixels` is negative.
    """
    return _windows("shift", pixels, "constant")


@transforms.register
def crop(padding: int) -> Transform:
    """Pads each image with its own mirror image and cuts a window of the old size at a random place.

    Like `shift` without black borders: for photos.

    Raises:
        ValueError: `padding` is negative.
    """
    return _windows("crop", padding, "reflect")


@transforms.register
def flip() -> Transform:
    """Mirrors each image left to right with probability 1/2. Not for digits and letters."""

    def apply(batch: Batch, uniforms: np.ndarray) -> Batch:
        images = _images(batch, "flip")
        mirrored = uniforms[:, 0, None, None, None] < 0.5
        return batch | {"image": np.where(mirrored, images[:, :, ::-1], images)}

    return Transform(1, apply)


def _windows(name: str, margin: int, border: Literal["constant", "reflect"]) -> Transform:
    """A random window of each padded image; uniforms of 0.5 pick the middle, which is the image itself."""
    if margin < 0:
        raise ValueError(f"{margin} pixels; give 0 or more.")

    def apply(batch: Batch, uniforms: np.ndarray) -> Batch:
        images = _images(batch, name)
        padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode=border)
        windows = np.lib.stride_tricks.sliding_window_view(padded, images.shape[1:], axis=(1, 2, 3))
        down, right = (uniforms * (2 * margin + 1)).astype(int).T
        return batch | {"image": windows[np.arange(len(images)), down, right, 0]}

    return Transform(2, apply)


def _images(batch: Batch, name: str) -> np.ndarray:
    image = batch.get("image")
    if image is None or image.ndim != 4:
        found = ", ".join(f"{field} {list(value.shape)}" for field, value in batch.items())
        cure = "Remove it, or give the records an 'image' of one shape"
        raise ConfigError("data.augment", f"{name!r} needs image [rows, height, width, channels], not {found}. {cure}.")
    return image
