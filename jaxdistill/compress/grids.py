"""Integer grids: the integers and scales that stand for an array of floats, as each file format chooses them.

A grid works on rows, `[..., rows, columns]`, where a row holds the weights of one output. One scale belongs to a row,
or to a block of 32 neighbours in it. Every grid is symmetric: 0 stays 0.

    channel 8, 4   s = max|w| / (2^(bits-1) - 1),   n = round(w / s)            LiteRT, ONNX Runtime: per channel
    channel 2      s = mean|w|,                     n = clip(round(w / s), -1, 1)
    block 8        s = max|w| / 127,                n = round(w / s)            GGUF, Q8_0
    block 4        s = w* / -8,                     n = min(floor(w / s + 8.5), 15) - 8     GGUF, Q4_0

where w* is the weight of largest magnitude, with its sign. Scales of blocks are stored in float16: the integers are
chosen by the exact scale, and multiplied by the rounded one.

Sources: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
2018 (arxiv.org/abs/1712.05877); ternary: Ma et al., The Era of 1-bit LLMs, 2024 (arxiv.org/abs/2402.17764); the blocks
of llama.cpp, github.com/ggml-org/llama.cpp.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdistill.core.types import Array

BLOCK = 32  # weights of a block, in GGUF
TINY = 1e-30  # least scale, so that a row of zeros is not divided by 0


class Rounded(NamedTuple):
    """Quantised weights: integers of a grid and their scales, whose product approximates the weights.

    integers: `[..., rows, blocks, columns of a block]`, whole numbers as floats
    scales: `[..., rows, blocks, 1]`
    low, high: least and greatest integer of the grid
    """

    integers: Array
    scales: Array
    low: int
    high: int


Grid = Callable[[Array], Rounded]  # [..., rows, columns] -> integers and scales


def grid(bits: int, block: int) -> Grid:
    """Return the grid (a function that rounds weights to integers with scales) for a number of bits.

    Args:
        bits: 8, 4, or 2 (three values: -1, 0, 1).
        block: number of weights that share a scale: 32, or 0 for a whole row.

    Raises:
        ValueError: there is no grid for these bits and this block.
    """
    if (bits, block) not in GRIDS:
        known = ", ".join(f"weights={b}" + (f" with block={n}" if n else "") for b, n in GRIDS)
        raise ValueError(f"there is no grid for weights={bits} with block={block}. Known: {known}")
    return GRIDS[bits, block]


def values(rounded: Rounded) -> Array:
    """Dequantise weights: multiply integers by scales, and return floats `[..., rows, columns]`."""
    products = rounded.integers * rounded.scales
    return products.reshape(*products.shape[:-2], -1)


def _blocks(rows: Array, size: int) -> Array:
    """Split rows into blocks of `size`, `[..., rows, blocks, size]`; size 0 makes one block of each row."""
    return rows.reshape(*rows.shape[:-1], -1, size or rows.shape[-1])


def _largest(bits: int) -> Grid:
    high = 2 ** (bits - 1) - 1

    def rounded(rows: Array) -> Rounded:
        blocks = _blocks(rows, 0)
        scales = jnp.maximum(jnp.max(jnp.abs(blocks), -1, keepdims=True), TINY) / high
        return Rounded(jnp.round(blocks / scales), scales, -high, high)

    return rounded


def _ternary(rows: Array) -> Rounded:
    blocks = _blocks(rows, 0)
    scales = jnp.maximum(jnp.mean(jnp.abs(blocks), -1, keepdims=True), TINY)
    return Rounded(jnp.clip(jnp.round(blocks / scales), -1, 1), scales, -1, 1)


def _in_float16(scales: Array) -> Array:
    return scales.astype(jnp.float16).astype(scales.dtype)


def _q8_0(rows: Array) -> Rounded:
    blocks = _blocks(rows, BLOCK)
    scales = jnp.max(jnp.abs(blocks), -1, keepdims=True) / 127
    inverse = jnp.where(scales == 0, 0, 1 / scales)
    scaled = blocks * inverse
    away = jnp.sign(scaled) * jnp.floor(jnp.abs(scaled) + 0.5)  # round halves away from zero
    return Rounded(away, _in_float16(scales), -127, 127)


def _q4_0(rows: Array) -> Rounded:
    blocks = _blocks(rows, BLOCK)
    place = jnp.argmax(jnp.abs(blocks), -1, keepdims=True)
    scales = jnp.take_along_axis(blocks, place, -1) / -8
    inverse = jnp.where(scales == 0, 0, 1 / scales)
    return Rounded(jnp.clip(jnp.floor(blocks * inverse + 8.5), 0, 15) - 8, _in_float16(scales), -8, 7)


GRIDS: dict[tuple[int, int], Grid] = {
    (8, 0): _largest(8),
    (4, 0): _largest(4),
    (2, 0): _ternary,
    (8, BLOCK): _q8_0,
    (4, BLOCK): _q4_0,
}


def straight_through(x: Array, rounded: Array) -> Array:
    """Return `rounded`, with the gradient of `x`: the straight-through estimator (arxiv.org/abs/1308.3432)."""
    return jax.lax.stop_gradient(rounded) + (x - jax.lax.stop_gradient(x))  # exactly `rounded`: x - x is 0


def round_rows(x: Array, axes: Sequence[int], bits: int) -> Array:
    """Quantise the inputs of a product and return them as floats, with a dynamic scale `max|x| / high` for each row.

    high is the largest integer, 127 for 8 bits. The gradient is straight-through.

    Args:
        x: the inputs.
        axes: the contracted axes of the product; all values along these axes share a scale.
        bits: 8 or 16.
    """
    high = 2 ** (bits - 1) - 1
    wide = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(wide), axis=axes, keepdims=True), TINY) / high
    return straight_through(x, (jnp.round(wide / scale) * scale).astype(x.dtype))


def round_in_range(x: Array, low: Array, high: Array, bits: int) -> Array:
    """Quantise the inputs of a product within a fixed range, and return them as floats.

    Values outside the range are clipped and get no gradient; inside it, the gradient is straight-through. 8 bits have a
    zero point, as in `QuantizeLinear` of ONNX: `clip(round(x / s) + z, -128, 127)`; 16 bits are symmetric.

    Args:
        x: the inputs.
        low, high: the ends of the range; `low` is at most 0 and `high` at least 0.
        bits: 8 or 16.
    """
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if bits == 8:
        scale = jnp.maximum(high - low, TINY) / (most - least)
        zero = jnp.clip(jnp.round(least - low / scale), least, most)
    else:
        scale, zero = jnp.maximum(jnp.maximum(high, -low), TINY) / most, jnp.zeros(())
    number = jnp.clip(jnp.round(x.astype(jnp.float32) / scale) + zero, least, most)
    inside = jnp.clip(x, ((least - zero) * scale).astype(x.dtype), ((most - zero) * scale).astype(x.dtype))
    return straight_through(inside, ((number - zero) * scale).astype(x.dtype))
