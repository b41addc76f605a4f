"""Rotary position embedding: Su et al., RoFormer, 2021 (arxiv.org/abs/2104.09864).

In the half-split layout of transformers: unit i of a head turns with unit i + head_size / 2. (The paper, and llama.cpp
for the Llamas, pair neighbours; there the rows of the query and key kernels are permuted.)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.core.types import Array


class Llama3(NamedTuple):
    """Longer contexts as Llama 3.1 has them (arxiv.org/abs/2407.21783): slow waves are stretched, quick ones are not.

    factor: by which waves longer than `context / low` are stretched
    low, high: waves shorter than `context / high` stay; between the two the stretch is blended
    context: the sequence length of pretraining, in tokens
    """

    factor: float
    low: float
    high: float
    context: int


def frequencies(head_size: int, theta: float, scaling: Llama3 | None) -> np.ndarray:
    """Radians per position for each pair of units, `[head_size / 2]` float32."""
    frequency = theta ** (-np.arange(0, head_size, 2) / head_size)
    if scaling is not None:
        waves = scaling.context * frequency / (2 * np.pi)  # how many fit into the context of pretraining
        kept = np.clip((waves - scaling.low) / (scaling.high - scaling.low), 0, 1)
        frequency = kept * frequency + (1 - kept) * frequency / scaling.factor
    return frequency.astype(np.float32)


def rotate(x: Array, angles: Array) -> Array:
    """Turns every head of `[rows, length, heads, head_size]` by angles `[rows or 1, length, head_size / 2]`."""
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def restarted(segments: Array) -> Array:
    """Positions that start from 0 in every segment, `[rows, length]` int32; a segment's tokens are neighbours."""
    index = jnp.arange(segments.shape[1])[None]
    starts = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)
