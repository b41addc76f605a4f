"""Rotary position embedding (Su et al. 2021, RoFormer, arxiv.org/abs/2104.09864).

The layout is the half-split layout of transformers: unit i of a head is rotated with unit i + head_size / 2. The paper,
and llama.cpp for Llama models, rotate neighbouring units instead, so the rows of their query and key kernels are
permuted.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.core.types import Array


class Llama3(NamedTuple):
    """The scaling of rotary positions to longer contexts in Llama 3.1 (2024, arxiv.org/abs/2407.21783).

    Long wavelengths are stretched, and short ones are not.

    factor: wavelengths above `context / low` are stretched by this factor
    low, high: wavelengths below `context / high` are unchanged; between the two, the result is interpolated
    context: sequence length of pretraining in tokens
    """

    factor: float
    low: float
    high: float
    context: int


def frequencies(head_size: int, theta: float, scaling: Llama3 | None) -> np.ndarray:
    """Compute the frequency of each pair of units in radians per position, `[head_size / 2]` float32."""
    frequency = theta ** (-np.arange(0, head_size, 2) / head_size)
    if scaling is not None:
        periods = scaling.context * frequency / (2 * np.pi)  # number of wavelengths in the context of pretraining
        unscaled = np.clip((periods - scaling.low) / (scaling.high - scaling.low), 0, 1)
        frequency = unscaled * frequency + (1 - unscaled) * frequency / scaling.factor
    return frequency.astype(np.float32)


def rotate(x: Array, angles: Array) -> Array:
    """Rotate the units of every head by position.

    Args:
        x: queries or keys, `[rows, length, heads, head_size]`.
        angles: `[rows or 1, length, head_size / 2]`.
    """
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]  # [rows or 1, length, 1, head_size / 2]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def restart_positions(segments: Array) -> Array:
    """Compute positions that restart from 0 in every segment, `[rows, length]` int32.

    Args:
        segments: number of the segment of each token, `[rows, length]`; a segment is contiguous.
    """
    index = jnp.arange(segments.shape[1])[None]
    starts = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)
