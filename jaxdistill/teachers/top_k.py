"""Exact top-k of a large vocabulary, by tiles.

`jax.lax.top_k` sorts the whole vocabulary, which on a GPU takes six times as long as the teacher's forward pass.

The vocabulary is cut into tiles. The k largest elements lie in the k tiles with the largest maxima: any element of
another tile ranks behind these k maxima. So the algorithm first selects k tiles by their maxima, and then k elements of
these tiles. Both selections use the same algorithm, recursively.
"""

import math

import jax
import jax.numpy as jnp

from jaxdistill.core.types import Array

SMALLEST = 4  # elements of a tile; with fewer, there would be nearly as many maxima as elements


def top_k(x: Array, k: int) -> tuple[Array, Array]:
    """Compute the values and the indices of the k largest elements along the last axis, both `[..., k]`.

    The result equals that of `jax.lax.top_k`, also for equal elements: the first is taken. The result for a row that
    contains NaN is undefined.

    Args:
        x: the elements, `[..., n]`.
        k: number of elements to find.
    """
    size = x.shape[-1]
    # about as many maxima as elements in k tiles; a power of 2 mostly divides a vocabulary, so that nothing is copied
    tile = 2 ** (math.isqrt(size // k).bit_length() - 1)
    if tile < SMALLEST:
        values, index = jax.lax.top_k(x, k)
        return values, index
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -size % tile)], constant_values=-jnp.inf) if size % tile else x
    tiles = padded.reshape(*x.shape[:-1], -1, tile)
    best_tiles = jnp.sort(top_k(tiles.max(axis=-1), k)[1], axis=-1)  # in rising order, so that ties go to the first
    chosen = jnp.take_along_axis(tiles, best_tiles[..., None], axis=-2)
    values, offset = top_k(chosen.reshape(*x.shape[:-1], -1), k)
    return values, jnp.take_along_axis(best_tiles, offset // tile, axis=-1) * tile + offset % tile
