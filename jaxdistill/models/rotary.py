"""Rotary position embedding (Su et al. 2021, RoFormer, arxiv.org/abs/2104.09864).

The layout is the half-split layout of transformers: units i and i + head_size / 2 of a head form a pair, which is
rotated. The paper, and llama.cpp for Llama models, pair neighbouring units instead. Checkpoints of llama.cpp therefore
store the rows of the query and key kernels in another order (`hub/gguf.py`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.core.types import Array


class Llama3(NamedTuple):
    """The scaling of rotary position embeddings to longer contexts in Llama 3.1 (2024, arxiv.org/abs/2407.21783).

    Each pair of units rotates with a wavelength, in tokens. Wavelengths above `context / low` are multiplied by
    `factor`, and those below `context / high` are unchanged. In between, the frequency is interpolated between both.

    factor: factor of the long wavelengths
    low: bound of the long wavelengths, as a number of periods in the context
    high: bound of the short wavelengths, as a number of periods in the context
    context: sequence length of the pretraining before the extension, in tokens
    """

    factor: float
    low: float
    high: float
    context: int


def frequencies(head_size: int, theta: float, scaling: Llama3 | None) -> np.ndarray:
    """Compute the rotation frequency of each pair of units in radians per position, `[head_size / 2]` float32.

    Without scaling, pair i of the units of a head has the frequency `theta ** (-2 * i / head_size)`.

    Args:
        head_size: number of units of an attention head.
        theta: base of the frequencies.
        scaling: scaling to longer contexts; None means no scaling.
    """
    frequency = theta ** (-np.arange(0, head_size, 2) / head_size)
    if scaling is not None:
        periods = scaling.context * frequency / (2 * np.pi)  # number of wavelengths in the context of pretraining
        unscaled = np.clip((periods - scaling.low) / (scaling.high - scaling.low), 0, 1)
        frequency = unscaled * frequency + (1 - unscaled) * frequency / scaling.factor
    return frequency.astype(np.float32)


def rotate(x: Array, angles: Array) -> Array:
    """Apply the rotary position embedding to queries or keys: rotate each pair of units by the angle of its position.

    A pair consists of the units i and `i + head_size / 2` of a head. The result has the shape of `x`.

    Args:
        x: queries or keys, `[batch, length, heads, head_size]`.
        angles: position times frequency for each pair of units, in radians, `[batch or 1, length, head_size / 2]`.
    """
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]  # [batch or 1, length, 1, head_size / 2]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def restart_positions(segments: Array) -> Array:
    """Compute token positions that restart from 0 in every segment (document) of a sequence, `[batch, length]` int32.

    Args:
        segments: number of the segment of each token, `[batch, length]`. The tokens of a segment are contiguous.
    """
    index = jnp.arange(segments.shape[1])[None]
    starts = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)
