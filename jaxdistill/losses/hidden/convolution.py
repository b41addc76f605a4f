"""What projectors are made of: kernels with or without a window, and normalisation by the batch."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxdistill.core.collectives import by_rows, psum
from jaxdistill.core.types import Array


def kernel(key: Array, *shape: int) -> Array:
    """A kernel `[*window, inputs, outputs]` that keeps the size of what it is applied to."""
    return jax.random.normal(key, shape) / math.prod(shape[:-1]) ** 0.5


def convolved(x: Array, kernel: Array, strides: tuple[int, ...] = ()) -> Array:
    """`[*batch, *extent, inputs] -> [*batch, *extent, outputs]` by a kernel `[*window, inputs, outputs]`.

    A kernel `[inputs, outputs]` has no window and serves any extent; one with a window pads "SAME". Strides are of the
    window's axes; (): 1.
    """
    kernel, axes = kernel.astype(x.dtype), kernel.ndim - 2
    if not axes:
        return by_rows(x @ kernel)
    letters = "DHW"[-axes:]
    layout = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    rows = by_rows(x.reshape(-1, *x.shape[-axes - 1 :]))
    y = jax.lax.conv_general_dilated(rows, kernel, strides or (1,) * axes, "SAME", dimension_numbers=layout)
    return by_rows(y.reshape(*x.shape[: -axes - 1], *y.shape[1:]))


def normalised(x: Array, counts: Array, params: Mapping[str, Array], name: str) -> Array:
    """Batch normalisation (Ioffe and Szegedy 2015, arxiv.org/abs/1502.03167) by the moments of the GLOBAL batch.

    There are no running statistics: a projector runs in training only.

    Args:
        x: `[*batch, *extent, width]`
        counts: what the moments are taken over: `[*batch]`, or more dimensions of x, where this is not 0
        params: hold `<name>/scale` and `<name>/bias`, `[width]`
        name: of the layer
    """
    axes = tuple(range(x.ndim - 1))
    counted = counts.reshape(counts.shape + (1,) * (x.ndim - counts.ndim)) != 0
    counted = jnp.broadcast_to(counted, (*x.shape[:-1], 1))
    count = jnp.maximum(psum(jnp.sum(counted)), 1).astype(x.dtype)
    average = lambda z: psum(jnp.sum(jnp.where(counted, z, 0.0), axis=axes)) / count
    mean = average(x)
    variance = average((x - mean) ** 2)
    y = (x - mean) * jax.lax.rsqrt(variance + 1e-5)
    return by_rows(y * params[f"{name}/scale"].astype(x.dtype) + params[f"{name}/bias"].astype(x.dtype))
