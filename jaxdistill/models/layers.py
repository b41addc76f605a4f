"""Layers and functions that the model families share: normalisation, dropout, activations, image scaling.

Modules compute in the dtype of their parameters, so that `in_dtype(model, "bfloat16")` needs no flag inside them.
Batch statistics and losses are always float32.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Float, Integer

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
    """Convert images to `dtype`; uint8 values are first scaled from 0..255 to -1..1 by `x / 127.5 - 1`.

    Float images are not scaled, because they are already normalised, for example by the data transform `processed`.
    uint8 images are converted on the device, because a transfer of uint8 to the device takes a quarter of the bytes of
    float32.
    """
    scaled = image.astype(jnp.float32) / 127.5 - 1 if image.dtype == jnp.uint8 else image
    return jnp.asarray(scaled, dtype)


def nudged(x: Array, batch: RowsLike, layer: int) -> Array:
    """Add the batch field `nudge/<layer>` to a hidden state, so that gradients with respect to the state can be taken.

    The field is an array of zeros with the shape of the hidden state; the gradient with respect to it is the gradient
    with respect to the hidden state, which some losses need (`derivatives.py`). If the batch has no such field, the
    hidden state is returned unchanged. A model must pass each hidden state that it returns through `nudged`, and must
    continue to compute with the result.

    Args:
        x: the hidden state.
        batch: the model's batch, `{field: array}`.
        layer: index of the hidden state in `Outputs.hidden_states`.
    """
    nudge = batch.get(f"nudge/{layer}")
    return x if nudge is None else by_rows(x + nudge.astype(x.dtype))


def require_dropout_rate(name: str, rate: float) -> None:
    """Require that a dropout rate is at least 0 and below 1.

    Args:
        name: name of the rate's argument, for the error message.
        rate: the dropout rate.

    Raises:
        ValueError: the rate is negative, or not below 1.
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"{name} must be at least 0 and below 1; got {rate}")


def dropout(x: Array, rate: float, *, train: bool, key: Array) -> Array:
    """Apply dropout to an array, `[batch, ...]`, in training, and divide the kept values by `1 - rate`.

    Each example has its own random key, derived from `key`, so that `pmap` and `jit` drop the same values.
    """
    if not train or rate == 0.0:
        return x
    keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - rate, x.shape[1:]))(row_keys(key, x.shape[0]))
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


class Depthwise(nnx.Module):
    """Depthwise convolution with "SAME" padding, computed as a sum of shifted products.

    For each position (i, j) of the kernel, the padded input is shifted by (i, j), strided, and multiplied by one weight
    per channel; the products are added in float32. XLA's grouped convolution is not used: on a (2, 2, 2) mesh (CPU, jax
    0.12.0.1) it took 10 times as long, and the error of its kernel gradient was as large as the gradient.

    Args:
        width: number of channels.
        size: height and width of the kernel.
        stride: stride along height and width.
        rngs: random streams of the initial kernel.
    """

    def __init__(self, width: int, size: int, stride: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), (size, size, 1, width)))
        self.stride = stride

    def __call__(self, x: Array) -> Array:
        """Convolve `[batch, height, width, channels]`; height and width are divided by the stride, rounded up."""
        size, stride = self.kernel.shape[0], self.stride
        height, width = (-(-extent // stride) for extent in x.shape[1:3])
        paddings = [max((n - 1) * stride + size - o, 0) for n, o in zip((height, width), x.shape[1:3], strict=True)]
        x = jnp.pad(x, ((0, 0), *((total // 2, total - total // 2) for total in paddings), (0, 0)))
        strided = lambda first, count: slice(first, first + (count - 1) * stride + 1, stride)
        shifted = lambda i, j: x[:, strided(i, height), strided(j, width)].astype(jnp.float32)
        products = (shifted(i, j) * self.kernel[i, j, 0] for i in range(size) for j in range(size))
        return functools.reduce(jnp.add, products).astype(x.dtype)


class BatchNorm(nnx.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) over the unmasked examples of the GLOBAL batch, on all devices.

    `nnx.BatchNorm(axis_name)` is not used, because it returned NaN under `pmap`. Also, it has no mask, so that padding
    would change the statistics.

    Args:
        width: number of channels, the size of the last axis.
        momentum: weight of the old value in an update of the running statistics.
        epsilon: value added to the variance.
    """

    def __init__(self, width: int, *, momentum: float = 0.9, epsilon: float = 1e-5):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.mean = nnx.BatchStat(jnp.zeros(width))
        self.var = nnx.BatchStat(jnp.ones(width))
        self.momentum, self.epsilon = momentum, epsilon

    def __call__(self, x: Array, mask: Array, train: bool) -> Array:
        """Normalise `[batch, ..., width]`, and update the running statistics in training.

        `mask`, `[batch]`, is 0 for examples that are padding.
        """
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
        """Compute mean and variance of each channel over the unmasked examples of all devices, `[width]` each."""
        axes = tuple(range(y.ndim - 1))
        weight = jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (y.ndim - mask.ndim)), (*y.shape[:-1], 1))
        count = jnp.maximum(psum(jnp.sum(weight)), 1.0)
        average = lambda z: psum(jnp.sum(jnp.where(weight > 0, z, 0.0), axis=axes)) / count
        mean = average(y)
        return mean, average((y - mean) ** 2)


def lookup(table: nnx.Embed, ids: Integer[Array, "*ids"]) -> Float[Array, "*ids width"]:
    """Look up the embedding of each id; an id outside the table gives NaN.

    The result has the table's current dtype. Calling `nnx.Embed` would cast it to the dtype of the table's creation.
    """
    return jnp.take(table.embedding.get_value(), ids, axis=0)
