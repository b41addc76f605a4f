"""Layers that the model families share, and that depend on masks, devices or dtypes.

Modules compute in the dtype of their parameters, so that `in_dtype(model, "bfloat16")` needs no flag inside them.
Statistics and losses are always float32.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jaxdistill.core.collectives import by_rows, psum, row_keys
from jaxdistill.core.types import Array, RowsLike

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {  # named as in Hugging Face configs
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def pixels(image: Array | np.ndarray, dtype: DTypeLike) -> Array:
    """Convert images to `dtype`: uint8 is scaled to -1 to 1, and floats stay as they are.

    The transform `processed` makes float images (data/image/processors.py). uint8 images are converted on the device,
    so that only a quarter of the bytes is transferred.
    """
    scaled = image.astype(jnp.float32) / 127.5 - 1 if image.dtype == jnp.uint8 else image
    return jnp.asarray(scaled, dtype)


def nudged(x: Array, batch: RowsLike, layer: int) -> Array:
    """Add `nudge/<layer>` of the batch to a hidden state, if the batch has this field.

    A model applies it to each hidden state that it returns, and computes on with the result. The gradient with respect
    to a nudge of zeros is the gradient with respect to the hidden state (`derivatives.py`).

    Args:
        x: the hidden state.
        batch: the model's batch.
        layer: index of the hidden state in `Outputs.hidden_states`.
    """
    nudge = batch.get(f"nudge/{layer}")
    return x if nudge is None else by_rows(x + nudge.astype(x.dtype))


def require_dropout_rate(name: str, rate: float) -> None:
    """Check a dropout rate.

    Raises:
        ValueError: the rate is negative, or not below 1.
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"{name} must be at least 0 and below 1; got {rate}")


def dropout(x: Array, rate: float, *, train: bool, key: Array) -> Array:
    """Apply inverted dropout to `[batch, ...]`, with one key per row so that pmap and jit drop the same values."""
    if not train or rate == 0.0:
        return x
    keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - rate, x.shape[1:]))(row_keys(key, x.shape[0]))
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


class Depthwise(nnx.Module):
    """Depthwise convolution with "SAME" padding, computed as a sum of shifted products.

    For each position (i, j) of the kernel, the padded input is shifted by (i, j), strided, and multiplied by one weight
    per channel; the products are added in float32. This replaces XLA's grouped convolution, which takes 10 times as
    long on a (2, 2, 2) mesh (CPU, jax 0.12.0.1), and whose kernel gradient was wrong there by as much as the gradient's
    size, with or without sharding constraints.
    """

    def __init__(self, width: int, size: int, stride: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), (size, size, 1, width)))
        self.stride = stride

    def __call__(self, x: Array) -> Array:
        """Filter `[batch, height, width, channels]`; height and width are divided by the stride, rounded up."""
        size, stride = self.kernel.shape[0], self.stride
        height, width = (-(-extent // stride) for extent in x.shape[1:3])
        paddings = [max((n - 1) * stride + size - o, 0) for n, o in zip((height, width), x.shape[1:3], strict=True)]
        x = jnp.pad(x, ((0, 0), *((total // 2, total - total // 2) for total in paddings), (0, 0)))
        strided = lambda first, count: slice(first, first + (count - 1) * stride + 1, stride)
        shifted = lambda i, j: x[:, strided(i, height), strided(j, width)].astype(jnp.float32)
        products = (shifted(i, j) * self.kernel[i, j, 0] for i in range(size) for j in range(size))
        return functools.reduce(jnp.add, products).astype(x.dtype)


class BatchNorm(nnx.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) over the unmasked rows of the GLOBAL batch.

    It replaces `nnx.BatchNorm(axis_name)`, which gave NaN under pmap and has no mask, so that padding would change the
    statistics.
    """

    def __init__(self, width: int, *, momentum: float = 0.9, epsilon: float = 1e-5):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.mean = nnx.BatchStat(jnp.zeros(width))
        self.var = nnx.BatchStat(jnp.ones(width))
        self.momentum, self.epsilon = momentum, epsilon

    def __call__(self, x: Array, mask: Array, train: bool) -> Array:
        """Normalise `[batch, ..., width]`; `mask` is `[batch]`."""
        y = x.astype(jnp.float32)
        if train:
            mean, var = self._moments(y, mask)
            for running, current in ((self.mean, mean), (self.var, var)):
                old = running.get_value()
                running.set_value(self.momentum * old + (1 - self.momentum) * jax.lax.stop_gradient(current))
        else:
            mean, var = self.mean.get_value(), self.var.get_value()
        y = (y - mean) * jax.lax.rsqrt(var + self.epsilon)
        return (y * self.scale + self.bias).astype(x.dtype)

    def _moments(self, y: Array, mask: Array) -> tuple[Array, Array]:
        """Compute mean and variance of the unmasked rows over all devices, `[width]` each."""
        axes = tuple(range(y.ndim - 1))
        weight = jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (y.ndim - mask.ndim)), (*y.shape[:-1], 1))
        count = jnp.maximum(psum(jnp.sum(weight)), 1.0)
        average = lambda z: psum(jnp.sum(jnp.where(weight > 0, z, 0.0), axis=axes)) / count
        mean = average(y)
        return mean, average((y - mean) ** 2)
