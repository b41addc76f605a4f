"""Load three photographs that a Python package ships losslessly, so that every machine has the same pixels."""

from pathlib import Path

import numpy as np
from PIL import Image

REQUIREMENT = "scikit-image==0.25.2"
NAMES = ("chelsea", "coffee", "astronaut")  # a cat, a cup of espresso, a woman in a space suit


def photographs(folder: Path, size: int = 224) -> np.ndarray:
    """Return the photographs of the unpacked package as uint8 `[3, size, size, 3]`.

    Each is cropped to its centre and shrunk by means over whole blocks of pixels.
    """
    return np.stack([_centre(np.asarray(Image.open(folder / "skimage" / "data" / f"{n}.png")), size) for n in NAMES])


def _centre(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    block = min(height, width) // size
    top, left = (height - size * block) // 2, (width - size * block) // 2
    cut = image[top : top + size * block, left : left + size * block, :3].astype(np.uint32)
    return (cut.reshape(size, block, size, block, 3).sum((1, 3)) // block**2).astype(np.uint8)
