"""Masked means over rows or tokens. A mean is kept as a sum and a count until all batches and devices are added up."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped

from jaxdistill.core import collectives
from jaxdistill.core.types import Array, PyTree, struct

Total = Any  # a sum: a jax array in a step, numpy float64 on the host, a shape under `eval_shape`


Mask = Shaped[Array, "..."]  # `[*batch]` or its leading dimensions; every nonzero entry counts once


def ratio(top: Total, bottom: Total) -> Total:
    """Return `top / bottom`; where `bottom` is 0, return 0 for JAX arrays and nan for NumPy values.

    JAX arrays come from a training step, in which a mean over no values must be 0 with a gradient of 0. NumPy values go
    to reports, in which a 0 would look like a measurement.
    """
    xp, empty_value = (jnp, 0.0) if isinstance(bottom, jax.Array) else (np, np.nan)
    empty = bottom == 0
    return xp.where(empty, empty_value, top / xp.where(empty, 1.0, bottom))[()]


@struct
class Mean:
    """A mean, kept as the sum and the number of values, so that means of batches can be added before the division."""

    sum: Total
    count: Total

    def compute(self) -> Total:
        """Return the mean, `sum / count`; if the count is 0, return 0 for JAX arrays and nan for NumPy values."""
        return ratio(self.sum, self.count)


@struct
class PerRow:
    """Metric values for each row (example) of a batch; values of several batches or devices are concatenated.

    Args:
        values: the values by name, each `[rows, ...]`
        mask: `[rows]`, 0 for a row that is padding of the batch
    """

    values: dict[str, Total]
    mask: Total


def over_devices(results: Mapping[str, Any]) -> dict[str, Any]:
    """Combine metrics over the devices under `pmap`: each `Mean` is summed, and the rows of each `PerRow` are gathered.

    Outside of `pmap` and `shard_map`, arrays are global, and the metrics are returned unchanged.
    """
    combine = lambda result: collectives.gather(result) if isinstance(result, PerRow) else collectives.psum(result)
    return {name: combine(result) for name, result in results.items()}


def broadcast_mask(mask: Mask, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Return `mask != 0`, broadcast to `shape`; the mask may lack the last dimensions of `shape`."""
    mask = jnp.asarray(mask) != 0
    return jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim)), shape)


def masked_mean(values: Shaped[Array, "..."], mask: Mask) -> Mean:
    """Compute a masked mean, kept as a `Mean`: the sum and the number of the values where the mask is not 0.

    Args:
        values: `[*batch, ...]`, of any real type or bool.
        mask: `[*batch]`, or with further dimensions of `values`; it is broadcast over the dimensions that it lacks.
    """
    values = jnp.asarray(values)
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))  # float64 stays, for checks of derivatives
    mask = broadcast_mask(mask, values.shape)
    return Mean(jnp.where(mask, values, 0.0).sum(), mask.sum(dtype=jnp.float32))


def text_shares(mask: Mask, texts: Integer[Array, "batch tokens"] | None = None) -> Float[Array, "batch tokens"]:
    """Compute a weight for each token, `1 / (number of tokens of its text)`, so that the weights of a text add up to 1.

    Tokens that are padding are not counted.

    Args:
        mask: `[batch, tokens]`, 0 for padding.
        texts: `[batch, tokens]`, the number of the text that a token belongs to, within its row, from 0 to the number
            of tokens. None means that each row is one text.

    Returns:
        `[batch, tokens]`, the weights; 0 for padding.
    """
    counted = (jnp.asarray(mask) != 0).astype(jnp.result_type(float))
    if texts is None:
        return counted / jnp.maximum(counted.sum(axis=1, keepdims=True), 1)
    count_texts = lambda row, numbers: jnp.zeros(row.shape[0] + 1, row.dtype).at[numbers].add(row)[numbers]
    return counted / jnp.maximum(jax.vmap(count_texts)(counted, texts), 1)


def weighted_mean(values: Shaped[Array, "..."], weight: Float[Array, "..."]) -> Mean:
    """Compute a weighted mean, kept as a `Mean`: the sum of `values * weight` and the sum of the weights.

    A value of weight 0 is left out, even if it is NaN.
    """
    values = values.astype(jnp.promote_types(values.dtype, weight.dtype))
    return Mean(jnp.where(weight != 0, values * weight, 0.0).sum(), weight.sum())


def shared_mean(values: Shaped[Array, "..."], mask: Mask) -> tuple[Array, Mean]:
    """Compute a masked mean over all devices, for a loss whose gradients are then summed over the devices.

    Returns:
        `(share, mean)`: the sum on this device divided by the count on all devices, to be differentiated; and the
        `Mean` (a sum and a count) over all devices, to be reported.
    """
    local = masked_mean(values, mask)
    total = collectives.psum(local)
    return local.sum / jnp.maximum(total.count, 1), total


def values_at_labels(
    values: Float[Array, "*batch classes"], labels: Integer[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Return `values[i, labels[i]]` for each row or token i, or NaN if the label is not a class, such as -1 (no label).

    Plain indexing with -1 would silently return the last class. A NaN stops the run with an error that names the loss
    term.
    """
    # a select, because the gradient of a gather is a scatter into zeros: three more passes over a large vocabulary
    is_label = jnp.arange(values.shape[-1]) == labels[..., None]
    picked = jnp.sum(jnp.where(is_label, values, 0), axis=-1)
    return jnp.where((labels >= 0) & (labels < values.shape[-1]), picked, jnp.nan)


def add(a: PyTree, b: PyTree) -> PyTree:
    """Add two pytrees of metrics leaf by leaf, in NumPy float64; in float32, a count would stop growing at 2^24."""
    return jax.tree.map(lambda x, y: np.asarray(x, np.float64) + np.asarray(y, np.float64), a, b)
