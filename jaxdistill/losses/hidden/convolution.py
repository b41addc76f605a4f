"""Building blocks of projectors: dense and convolution kernels, and batch normalisation over the global batch."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxdistill.core.collectives import by_rows, psum
from jaxdistill.core.types import Array


def init_kernel(key: Array, *shape: int) -> Array:
    """Draw a kernel from a normal distribution with mean 0 and variance 1 / fan-in.

    The outputs of the layer then have about the same variance as its inputs.

    Args:
        key: PRNG key.
        shape: `inputs, outputs` for a dense layer, `*window, inputs, outputs` for a convolution, as separate arguments.
    """
    return jax.random.normal(key, shape) / math.prod(shape[:-1]) ** 0.5


def convolve(x: Array, kernel: Array, strides: tuple[int, ...] = ()) -> Array:
    """Apply a dense or convolution kernel: `[*batch, *extent, inputs] -> [*batch, *new_extent, outputs]`.

    Args:
        x: `[*batch, *extent, inputs]`; `*extent` are any spatial or sequence axes.
        kernel: `[inputs, outputs]` is a dense layer that acts on each position; `[*window, inputs, outputs]` is a
            convolution with "SAME" padding over the axes of the window.
        strides: the stride along each axis of the window; an empty tuple means strides of 1.
    """
    kernel, axes = kernel.astype(x.dtype), kernel.ndim - 2
    if not axes:
        return by_rows(x @ kernel)
    letters = "DHW"[-axes:]
    layout = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    rows = by_rows(x.reshape(-1, *x.shape[-axes - 1 :]))
    y = jax.lax.conv_general_dilated(rows, kernel, strides or (1,) * axes, "SAME", dimension_numbers=layout)
    return by_rows(y.reshape(*x.shape[: -axes - 1], *y.shape[1:]))


def batch_norm(x: Array, valid: Array, params: Mapping[str, Array], name: str) -> Array:
    """Apply batch normalisation: `(x - mean) / sqrt(variance + 1e-5) * scale + bias` (Ioffe and Szegedy 2015).

    Mean and variance are those of the batch on all devices (arxiv.org/abs/1502.03167). No running statistics are kept,
    because the layer is used in training only.

    Args:
        x: `[*batch, *extent, width]`; `*extent` are any spatial or sequence axes.
        valid: mask `[*batch]`, or of more leading axes of `x`; positions where the mask is 0 are left out of mean and
            variance.
        params: parameters by name, with the arrays `<name>/scale` and `<name>/bias`, each `[width]`.
        name: name of the layer in `params`.
    """
    axes = tuple(range(x.ndim - 1))
    included = valid.reshape(valid.shape + (1,) * (x.ndim - valid.ndim)) != 0
    included = jnp.broadcast_to(included, (*x.shape[:-1], 1))
    count = jnp.maximum(psum(jnp.sum(included)), 1).astype(x.dtype)
    average = lambda z: psum(jnp.sum(jnp.where(included, z, 0.0), axis=axes)) / count
    mean = average(x)
    variance = average((x - mean) ** 2)
    y = (x - mean) * jax.lax.rsqrt(variance + 1e-5)
    return by_rows(y * params[f"{name}/scale"].astype(x.dtype) + params[f"{name}/bias"].astype(x.dtype))
