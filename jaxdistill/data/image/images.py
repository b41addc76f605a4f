"""Image augmentations on the host: shift, crop, flip, mixup and cutmix of whole batches in numpy.

Images are the field `image`, `[rows, height, width, channels]`, and keep their dtype. Random numbers are an argument,
so that a batch is the same with one process, with several, and after a resume.
"""

import functools
from typing import Literal

import numpy as np

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import transforms
from jaxdistill.data.stream import Batch, Transform


@transforms.register
def shift(pixels: int) -> Transform:
    """Shift each image by a random number of pixels along both axes, at most `pixels`, and fill the gap with zeros.

    Hinton et al. (2015) call this jitter. Zero padding and a random crop, as is usual for CIFAR, give the same images.

    Raises:
        ValueError: `pixels` is negative.
    """
    return _windows("shift", pixels, "constant")


@transforms.register
def crop(padding: int) -> Transform:
    """Pad each image by reflection, and crop a window of the original size at a random position.

    Suited to photos: unlike `shift`, this leaves no black borders.

    Args:
        padding: number of pixels that are added on each side of the image.

    Raises:
        ValueError: `padding` is negative.
    """
    return _windows("crop", padding, "reflect")


@transforms.register
def flip() -> Transform:
    """Mirror each image left to right with probability 1/2. Unsuitable for digits and letters."""

    def apply(batch: Batch, uniforms: np.ndarray) -> Batch:
        images = require_images(batch, "flip")
        mirrored = uniforms[:, 0, None, None, None] < 0.5
        return batch | {"image": np.where(mirrored, images[:, :, ::-1], images)}

    return Transform(1, apply)


@transforms.register
def mixup(alpha: float, classes: int) -> Transform:
    """Mix each image x with a partner x' as `share * x + (1 - share) * x'`, and the labels in the same way.

    The share of each example is drawn from Beta(alpha, alpha). Examples 0 and 1 of the batch are partners, examples 2
    and 3, and so on. Since the examples are shuffled in every epoch, the partners are random.

    The mixed labels are written to the field `label_probs` `[rows, classes]`, for the loss
    `cross_entropy(target='label_probs')`. One-hot labels are mixed, or `label_probs` if the examples already have this
    field. The field `label` is unchanged. Teacher and student receive the same mixed images.

    Args:
        alpha: parameter of the Beta distribution, positive; 0.2 for ImageNet, 1 for CIFAR (uniform shares).
        classes: number of classes of the labels.

    Raises:
        ValueError: `alpha` or `classes` is not positive.
        ConfigError: the batch has no images, no labels, an odd number of examples, or another number of classes.

    References:
        Zhang, Cisse, Dauphin, Lopez-Paz: mixup: Beyond empirical risk minimization, 2018.
        https://arxiv.org/abs/1710.09412
    """
    from scipy.special import betaincinv  # here, because it is slow to import

    _positive(alpha, classes)

    def apply(batch: Batch, uniforms: np.ndarray) -> Batch:
        images, probs = require_images(batch, "mixup"), _distributions(batch, classes, "mixup")
        partner = _partners(len(images), "mixup")
        share = betaincinv(alpha, alpha, uniforms[:, 0]).astype(np.float32)
        mixed = functools.partial(_mixed, share=share, partner=partner)
        return batch | {"image": mixed(images), "label_probs": mixed(probs)}

    return Transform(1, apply)


@transforms.register
def cutmix(alpha: float, classes: int) -> Transform:
    """Paste a box of a partner image into each image, and mix the labels y and y' as `share * y + (1 - share) * y'`.

    Here share is the fraction of the image outside the box. The height and width of the box are `sqrt(1 - s)` times
    those of the image, with s ~ Beta(alpha, alpha). The centre of the box is uniform in the image, and the box is
    clipped at the border. Examples 0 and 1 of the batch are partners, examples 2 and 3, and so on.

    The mixed labels are written to the field `label_probs` `[rows, classes]`, for the loss
    `cross_entropy(target='label_probs')`. The field `label` is unchanged.

    Args:
        alpha: parameter of the Beta distribution, positive; 1 is the uniform distribution.
        classes: number of classes of the labels.

    Raises:
        ValueError: `alpha` or `classes` is not positive.
        ConfigError: the batch has no images, no labels, an odd number of examples, or another number of classes.

    References:
        Yun et al.: CutMix: Regularization strategy to train strong classifiers with localizable features, 2019.
        https://arxiv.org/abs/1905.04899
    """
    from scipy.special import betaincinv  # here, because it is slow to import

    _positive(alpha, classes)

    def apply(batch: Batch, uniforms: np.ndarray) -> Batch:
        images, probs = require_images(batch, "cutmix"), _distributions(batch, classes, "cutmix")
        partner = _partners(len(images), "cutmix")
        side = np.sqrt(1 - betaincinv(alpha, alpha, uniforms[:, 0]))
        rows, columns = (
            _inside(side * size, centre * size, size)
            for size, centre in zip(images.shape[1:3], uniforms[:, 1:].T, strict=True)
        )
        pasted = rows[:, :, None] & columns[:, None, :]
        share = (1 - pasted.mean((1, 2))).astype(np.float32)
        image = np.where(pasted[..., None], images[partner], images)
        return batch | {"image": image, "label_probs": _mixed(probs, share, partner)}

    return Transform(3, apply)


def _inside(length: np.ndarray, centre: np.ndarray, size: int) -> np.ndarray:
    """Return a boolean mask of the pixels that lie in an interval, for each example (row) of a batch, `[rows, size]`.

    Args:
        length: length of the intervals in pixels, `[rows]`.
        centre: centre of the intervals in pixels, `[rows]`.
        size: number of pixels along the axis of the image.
    """
    first, last = np.rint(centre - length / 2)[:, None], np.rint(centre + length / 2)[:, None]
    return (np.arange(size) >= first) & (np.arange(size) < last)


def _positive(alpha: float, classes: int) -> None:
    if alpha <= 0 or classes < 1:
        raise ValueError(f"alpha={alpha}, classes={classes}; give positive numbers.")


def _partners(rows: int, name: str) -> np.ndarray:
    """Return the number of each row's partner in the batch, `[rows]`; rows 0 and 1 are partners, rows 2 and 3, ..."""
    if rows % 2:
        cure = "Choose a batch_size that gives every process an even number"
        raise ConfigError("data.augment", f"{name!r} pairs rows, but {rows} is odd. {cure}.")
    return np.arange(rows) ^ 1


def _mixed(x: np.ndarray, share: np.ndarray, partner: np.ndarray) -> np.ndarray:
    """Return `share x + (1 - share) x[partner]` in the dtype of `x`; `share` and `partner` have one value per row."""
    weight = share.reshape(-1, *[1] * (x.ndim - 1))
    mixture = weight * x + (1 - weight) * x[partner]
    return (mixture if x.dtype.kind == "f" else np.rint(mixture)).astype(x.dtype)


def _distributions(batch: Batch, classes: int, name: str) -> np.ndarray:
    """Return the class probabilities of each example, `[rows, classes]`, from `label_probs` or else one-hot labels."""
    if "label_probs" not in batch:
        if "label" not in batch:
            cure = "remove the transform, or add one of these fields to the records"
            raise ConfigError("data.augment", f"{name!r} needs label or label_probs; {cure}.")
        return (batch["label"][:, None] == np.arange(classes)).astype(np.float32)
    probs = batch["label_probs"]
    if probs.shape[1:] != (classes,):
        shape = f"label_probs {list(probs.shape)}; set classes={probs.shape[-1]}"
        raise ConfigError("data.augment", f"{name!r} has classes={classes}, but the batch has {shape}.")
    return probs


def _windows(name: str, margin: int, border: Literal["constant", "reflect"]) -> Transform:
    """Return a transform that pads each image and crops a random window of the original size.

    If both random numbers of an image are 0.5, the result is the original image.

    Args:
        name: name of the transform, for error messages.
        margin: pixels to pad on each side.
        border: padding mode of `np.pad`.
    """
    if margin < 0:
        raise ValueError(f"{margin} pixels; give 0 or more.")

    def apply(batch: Batch, uniforms: np.ndarray) -> Batch:
        images = require_images(batch, name)
        if margin >= min(images.shape[1:3]):
            height, width = images.shape[1:3]
            problem = f"{name} by {margin} pixels leaves nothing of images of {height} x {width} pixels"
            raise ConfigError("data.augment", f"{problem}. Choose fewer pixels.")
        padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode=border)
        windows = np.lib.stride_tricks.sliding_window_view(padded, images.shape[1:], axis=(1, 2, 3))
        down, right = (uniforms * (2 * margin + 1)).astype(int).T
        return batch | {"image": windows[np.arange(len(images)), down, right, 0]}

    return Transform(2, apply)


def require_images(batch: Batch, name: str) -> np.ndarray:
    """Return the images of a batch, `[rows, height, width, channels]`.

    Args:
        batch: the batch.
        name: name of the transform that needs the images, for the error message.

    Raises:
        ConfigError: the batch has no images, or they differ in size.
    """
    image = batch.get("image")
    if image is None or image.ndim != 4:
        fields = ", ".join(f"{field} {list(value.shape)}" for field, value in batch.items())
        cure = "Remove the transform, or give all images one shape, for example with resize(size=224) before it"
        problem = f"{name!r} needs image [rows, height, width, channels], not {fields}"
        raise ConfigError("data.augment", f"{problem}. {cure}.")
    return image
