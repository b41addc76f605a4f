"""Augmentations of images on the host: whole batches in numpy, uint8 stays uint8.

A batch holds them as `image`, `[rows, height, width, channels]`. Draws come as an argument, so that a batch is the
same on one process as on many, and after a resume.
"""

import functools
from typing import Literal

import numpy as np

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import transforms
from jaxdistill.data.stream import Batch, Transform


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


@transforms.register
def mixup(alpha: float, classes: int) -> Transform:
    """Mixes each image with its neighbour, `share x + (1 - share) x'`, and what they show; share ~ Beta(alpha, alpha).

    Writes `label_probs` `[rows, classes]` for `cross_entropy(target='label_probs')`: a mixture of the labels, or of the
    records' own `label_probs`; `label` stays what it was. Teacher and student see the same mixture.

    Rows 0 and 1 are partners, rows 2 and 3, and so on, each with a share of its own. The order of an epoch is a random
    one, so a neighbour is as random a partner as any, and it is in the same process, whichever rows that holds. A share
    is the inverse of the distribution function at one uniform number: no rejection, so that the draws of the next row
    are where they were.

    Args:
        alpha: positive; 0.2 for ImageNet, 1 for CIFAR (all shares are as likely).
        classes: how many labels there are.

    Raises:
        ValueError: `alpha` or `classes` is not positive.
        ConfigError: on a batch without images, with an odd number of rows, or with another number of classes.

    References:
        Zhang, Cisse, Dauphin, Lopez-Paz: mixup: Beyond empirical risk minimization, 2018.
        https://arxiv.org/abs/1710.09412
    """
    from scipy.special import betaincinv  # here, because it is slow to import

    _positive(alpha, classes)

    def apply(batch: Batch, uniforms: np.ndarray) -> Batch:
        images, probs = _images(batch, "mixup"), _distributions(batch, classes, "mixup")
        partner = _partners(len(images), "mixup")
        share = betaincinv(alpha, alpha, uniforms[:, 0]).astype(np.float32)
        mixed = functools.partial(_mixed, share=share, partner=partner)
        return batch | {"image": mixed(images), "label_probs": mixed(probs)}

    return Transform(1, apply)


@transforms.register
def cutmix(alpha: float, classes: int) -> Transform:
    """Pastes a box of its neighbour into each image; the labels are mixed as the areas are.

    Partners, labels, arguments and errors are those of `mixup`. The box has the image's proportions and its centre
    anywhere; what of it lies outside is cut off, and its share is that of the pixels that are left.

    References:
        Yun et al.: CutMix: Regularization strategy to train strong classifiers with localizable features, 2019.
        https://arxiv.org/abs/1905.04899
    """
    from scipy.special import betaincinv  # here, because it is slow to import

    _positive(alpha, classes)

    def apply(batch: Batch, uniforms: np.ndarray) -> Batch:
        images, probs = _images(batch, "cutmix"), _distributions(batch, classes, "cutmix")
        partner = _partners(len(images), "cutmix")
        side = np.sqrt(1 - betaincinv(alpha, alpha, uniforms[:, 0]))
        rows, columns = (
            _within(side * size, centre * size, size)
            for size, centre in zip(images.shape[1:3], uniforms[:, 1:].T, strict=True)
        )
        pasted = rows[:, :, None] & columns[:, None, :]
        own = (1 - pasted.mean((1, 2))).astype(np.float32)
        image = np.where(pasted[..., None], images[partner], images)
        return batch | {"image": image, "label_probs": _mixed(probs, own, partner)}

    return Transform(3, apply)


def _within(length: np.ndarray, centre: np.ndarray, size: int) -> np.ndarray:
    """Which of `size` pixels lie in a stretch, `[rows, size]`."""
    first, last = np.rint(centre - length / 2)[:, None], np.rint(centre + length / 2)[:, None]
    return (np.arange(size) >= first) & (np.arange(size) < last)


def _positive(alpha: float, classes: int) -> None:
    if alpha <= 0 or classes < 1:
        raise ValueError(f"alpha {alpha}, {classes} classes; give positive numbers.")


def _partners(rows: int, name: str) -> np.ndarray:
    """The neighbour of each row, `[rows]`."""
    if rows % 2:
        cure = "Choose a batch_size that gives every process an even number"
        raise ConfigError("data.augment", f"{name!r} pairs rows, and {rows} are odd. {cure}.")
    return np.arange(rows) ^ 1


def _mixed(x: np.ndarray, share: np.ndarray, partner: np.ndarray) -> np.ndarray:
    """Of each row its share, and of its partner the rest."""
    own = share.reshape(-1, *[1] * (x.ndim - 1))
    both = own * x + (1 - own) * x[partner]
    return (both if x.dtype.kind == "f" else np.rint(both)).astype(x.dtype)


def _distributions(batch: Batch, classes: int, name: str) -> np.ndarray:
    """What each row shows, `[rows, classes]`: what raters said, or its label alone."""
    if "label_probs" not in batch:
        if "label" not in batch:
            cure = "remove it, or give the records one"
            raise ConfigError("data.augment", f"{name!r} needs label or label_probs; {cure}.")
        return (batch["label"][:, None] == np.arange(classes)).astype(np.float32)
    probs = batch["label_probs"]
    if probs.shape[1:] != (classes,):
        found = f"label_probs {list(probs.shape)}; set classes={probs.shape[-1]}"
        raise ConfigError("data.augment", f"{name!r} for {classes} classes, and the batch has {found}.")
    return probs


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
        cure = "Remove it, or give the records an 'image' of one shape, as resize(size=224) before it does"
        raise ConfigError("data.augment", f"{name!r} needs image [rows, height, width, channels], not {found}. {cure}.")
    return image
