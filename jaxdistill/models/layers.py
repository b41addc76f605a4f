"""Layers that our families share: what must know about masks, devices and dtypes.

Modules compute in the dtype of their parameters, so that `in_dtype(model, "bfloat16")` needs no flag inside them.
Statistics and losses are float32 throughout.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdistill.core.collectives import by_rows, psum, row_keys
from jaxdistill.core.types import Array

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {  # by the names of transformers' configs
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def pixels(image: Array, dtype: jnp.dtype) -> Array:
    """Images as numbers: uint8 from -1 to 1, and floats as they are (`processed` of data/processors.py makes them).

    uint8 travels to the device and is converted there, a quarter of the bytes.
    """
    scaled = image.astype(jnp.float32) / 127.5 - 1 if image.dtype == jnp.uint8 else image
    return scaled.astype(dtype)


def nudged(x: Array, batch: Mapping[str, Array], layer: int) -> Array:
    """A hidden state as a model returns it and reads on, with `nudge/<layer>` of the batch added where there is one.

    The gradient with respect to a nudge of zeros is that with respect to the hidden state: see `derivatives.py`.
    """
    nudge = batch.get(f"nudge/{layer}")
    return x if nudge is None else by_rows(x + nudge.astype(x.dtype))


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


class Depthwise(nnx.Module):
    """Convolution of each channel by itself, "SAME" padding, as a sum of shifted products.

    XLA's own grouped convolution got the kernel's gradient wrong by its whole size on a (2, 2, 2) mesh, constrained or
    not (CPU, jax 0.12.0.1), and takes 10 times as long there.
    """

    def __init__(self, width: int, size: int, stride: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), (size, size, 1, width)))
        self.stride = stride

    def __call__(self, x: Array) -> Array:
        """Filters `[batch, height, width, channels]`."""
        size, stride = self.kernel.shape[0], self.stride
        height, width = (-(-extent // stride) for extent in x.shape[1:3])
        missing = [max((n - 1) * stride + size - o, 0) for n, o in zip((height, width), x.shape[1:3], strict=True)]
        x = jnp.pad(x, ((0, 0), *((total // 2, total - total // 2) for total in missing), (0, 0)))
        every = lambda first, count: slice(first, first + (count - 1) * stride + 1, stride)
        shifted = lambda i, j: x[:, every(i, height), every(j, width)].astype(jnp.float32)
        products = (shifted(i, j) * self.kernel[i, j, 0] for i in range(size) for j in range(size))
        return functools.reduce(jnp.add, products).astype(x.dtype)


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
