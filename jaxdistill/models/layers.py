"""Layers that our families share: what must know about masks, devices and dtypes.

Modules compute in the dtype of their parameters, so that `in_dtype(model, "bfloat16")` needs no flag inside them.
Statistics and losses are float32 throughout.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdistill.parallel.collectives import psum, row_keys
from jaxdistill.types import Array


def pixels(image: Array, dtype: jnp.dtype) -> Array:
    """Images as numbers from -1 to 1; uint8 travels to the device and is converted there, a quarter of the bytes."""
    scaled = image.astype(jnp.float32) / 127.5 - 1 if image.dtype == jnp.uint8 else image
    return scaled.astype(dtype)


def require_share(name: str, value: float) -> None:
    """Refuses what is no share to be dropped.

    Raises:
        ValueError: it is negative, or 1 and more.
    """
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} is a share, from 0 to below 1; got {value}")


def dropout(x: Array, rate: float, *, train: bool, key: Array) -> Array:
    """Inverted dropout of `[batch, ...]` with a key per row, so that pmap drops what jit drops."""
    if not train or rate == 0.0:
        return x
    keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - rate, x.shape[1:]))(row_keys(key, x.shape[0]))
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


class BatchNorm(nnx.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) over the rows of the GLOBAL batch that the mask counts.

    Own code because `nnx.BatchNorm(axis_name)` gave NaN under pmap, and knows no mask: padding would shift the
    statistics.
    """

    def __init__(self, width: int, *, momentum: float = 0.9, epsilon: float = 1e-5):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.mean = nnx.BatchStat(jnp.zeros(width))
        self.var = nnx.BatchStat(jnp.ones(width))
        self.momentum, self.epsilon = momentum, epsilon

    def __call__(self, x: Array, mask: Array, train: bool) -> Array:
        """Normalises `[batch, ..., width]`; `mask` is `[batch]`."""
        y = x.astype(jnp.float32)
        if train:
            mean, var = self._moments(y, mask)
            for stat, now in ((self.mean, mean), (self.var, var)):
                old = stat.get_value()
                stat.set_value(self.momentum * old + (1 - self.momentum) * jax.lax.stop_gradient(now))
        else:
            mean, var = self.mean.get_value(), self.var.get_value()
        y = (y - mean) * jax.lax.rsqrt(var + self.epsilon)
        return (y * self.scale + self.bias).astype(x.dtype)

    def _moments(self, y: Array, mask: Array) -> tuple[Array, Array]:
        axes = tuple(range(y.ndim - 1))
        weight = jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (y.ndim - mask.ndim)), (*y.shape[:-1], 1))
        count = jnp.maximum(psum(jnp.sum(weight)), 1.0)
        average = lambda z: psum(jnp.sum(jnp.where(weight > 0, z, 0.0), axis=axes)) / count
        mean = average(y)
        return mean, average((y - mean) ** 2)
