"""Random affine warps of images on the host: rotation, scale, shear and shift at once, with bilinear interpolation.

Images are the field `image`, `[rows, height, width, channels]`, and keep their dtype.
"""

import numpy as np

from jaxdistill.core.registry import transforms
from jaxdistill.data.image.images import require_images
from jaxdistill.data.stream import Batch, Transform

LARGEST = {"rotation": 3.2, "scale": 3.0, "shear": 10.0, "shift": 1.0}  # half a turn, a factor of 20, a whole image


@transforms.register
def warp(rotation: float = 0.35, scale: float = 0.2, shear: float = 0.3, shift: float = 0.1) -> Transform:
    """Warp each image by a random affine map about its centre, and fill what lies outside of the image with zeros.

    With u uniform in -1 to 1 for each number, an image is rotated by `rotation * u`, scaled by `exp(scale * u)`,
    sheared by `shear * u`, and shifted along both axes by `shift * u` of its size. Teacher and student receive the same
    warped images. The defaults suit digits; `mixup` or `cutmix` may follow.

    Args:
        rotation: largest angle, in radians.
        scale: largest logarithm of the scale; 0.2 makes an image at most 22 % larger or 18 % smaller.
        shear: largest shift of a row against the next one, in pixels.
        shift: largest shift, as a share of the image's height and width.

    Raises:
        ValueError: a number is negative, or too large to leave anything of an image.
    """
    limits = {"rotation": rotation, "scale": scale, "shear": shear, "shift": shift}
    for name, limit in limits.items():
        if not 0 <= limit <= LARGEST[name]:
            raise ValueError(f"{name}={limit}; give a number from 0 to {LARGEST[name]}.")

    def apply(batch: Batch, uniforms: np.ndarray) -> Batch:
        images, signed = require_images(batch, "warp"), 2 * uniforms - 1
        angle, size, slant = rotation * signed[:, 0], np.exp(scale * signed[:, 1]), shear * signed[:, 2]
        moved = shift * signed[:, 3:] * images.shape[1:3]
        return batch | {"image": _sampled(images, _inverse(angle, size, slant), moved)}

    return Transform(5, apply)


def _inverse(angle: np.ndarray, size: np.ndarray, slant: np.ndarray) -> np.ndarray:
    """Return the matrices that map a position in the warped image to one in the original, `[rows, 2, 2]`.

    Args:
        angle: angle of the rotation in radians, `[rows]`.
        size: factor of the size, `[rows]`.
        slant: shift of a row of pixels against the next one, in pixels, `[rows]`.
    """
    cos, sin = np.cos(angle), np.sin(angle)
    rotate = np.stack([cos, sin, -sin, cos], axis=-1).reshape(-1, 2, 2)
    skew = np.stack([np.ones_like(slant), np.zeros_like(slant), slant, np.ones_like(slant)], axis=-1)
    return rotate @ skew.reshape(-1, 2, 2) / size[:, None, None]


def _sampled(images: np.ndarray, matrices: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Sample images at warped positions, bilinearly; positions outside of an image are zeros.

    Args:
        images: `[rows, height, width, channels]`.
        matrices: maps of positions (down, right) about the centre, `[rows, 2, 2]`.
        moved: shifts of the images in pixels (down, right), `[rows, 2]`.
    """
    rows, height, width, _ = images.shape
    centre = np.array([height - 1, width - 1]) / 2
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1).reshape(-1, 2) - centre
    # [rows, pixels, 2]: where each pixel of the result comes from
    places = np.einsum("rij,rpj->rpi", matrices, grid[None] - moved[:, None]) + centre
    first = np.floor(places).astype(int)
    part, every = (places - first).astype(np.float32), np.arange(rows)[:, None]
    result = np.zeros((rows, height * width, images.shape[-1]), np.float32)
    for down in (0, 1):
        for right in (0, 1):
            y, x = first[..., 0] + down, first[..., 1] + right
            weight = (part[..., 0] if down else 1 - part[..., 0]) * (part[..., 1] if right else 1 - part[..., 1])
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            pixels = images[every, np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
            result += (weight * inside)[..., None] * pixels
    result = result.reshape(images.shape)
    return (result if images.dtype.kind == "f" else np.rint(result)).astype(images.dtype)
