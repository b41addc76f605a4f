"""The largest of many: `jax.lax.top_k` sorts a whole vocabulary, and takes six times a teacher's time for it on a GPU.

The k largest lie in the k tiles whose own largest are largest: an element of another tile has k of these before it. So
the tiles are chosen by their maxima and the elements among their elements, each choice made the same way.
"""

import math

import jax
import jax.numpy as jnp

from jaxdistill.core.types import Array

SMALLEST = 4  # elements of a tile; with fewer the maxima would be as many as the elements nearly


def top_k(x: Array, k: int) -> tuple[Array, Array]:
    """Values and indices of the k largest along the last axis, `[..., k]`, as `jax.lax.top_k`; of equals, the first.

    Exact: the same values and the same indices. A NaN makes its row undefined.
    """
    size = x.shape[-1]
    # about as many maxima as elements of the chosen tiles; of vocabularies mostly a divisor, so that nothing is copied
    tile = 2 ** (math.isqrt(size // k).bit_length() - 1)
    if tile < SMALLEST:
        values, index = jax.lax.top_k(x, k)
        return values, index
    filled = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -size % tile)], constant_values=-jnp.inf) if size % tile else x
    tiles = filled.reshape(*x.shape[:-1], -1, tile)
    best = jnp.sort(top_k(tiles.max(axis=-1), k)[1], axis=-1)  # in their order, so that of equals the first is found
    chosen = jnp.take_along_axis(tiles, best[..., None], axis=-2)
    values, place = top_k(chosen.reshape(*x.shape[:-1], -1), k)
    return values, jnp.take_along_axis(best, place // tile, axis=-1) * tile + place % tile
