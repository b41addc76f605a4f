"""Seeded weights and inputs, the same for published code, which made the reference values, and for ours.

It imports numpy only, so that it also runs in an environment with torch and without JAX.
"""

import zlib
from collections.abc import Mapping

import numpy as np


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw a plausible float32 weight, seeded by its name alone, so that the order of weights does not matter."""
    draw = np.random.Generator(np.random.Philox(zlib.crc32(name.encode())))
    noise = draw.standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        return 0.5 + draw.random(shape, np.float32)
    if name.endswith("running_mean"):
        return np.float32(0.1) * noise
    if len(shape) == 1:
        return (1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise).astype(np.float32)
    if len(shape) == 0:
        return np.asarray(0.5 + 0.1 * noise, np.float32)
    return noise / np.float32(np.sqrt(np.prod(shape[1:])))


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Draw all weights of a checkpoint."""
    return {name: weight(name, tuple(shape)) for name, shape in shapes.items()}


def tokens(rows: int, length: int, vocabulary: int, seed: int = 0) -> np.ndarray:
    """Draw token ids, `[rows, length]` int32."""
    return np.random.Generator(np.random.Philox(seed)).integers(0, vocabulary, (rows, length)).astype(np.int32)


def images(rows: int, size: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Draw normalised images, `[rows, size, size, channels]` float32."""
    return np.random.Generator(np.random.Philox(seed)).standard_normal((rows, size, size, channels), np.float32)
