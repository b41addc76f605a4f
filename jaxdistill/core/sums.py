"""Masked sums over rows. A mean is kept as a sum and a count until all batches and devices have been added."""

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
    """Return `top / bottom`; for a count of zero, 0 for jax arrays and nan for numpy totals.

    In a step an empty mask must give a zero with a zero gradient. In a report a zero would look like a measurement.
    """
    xp, empty_value = (jnp, 0.0) if isinstance(bottom, jax.Array) else (np, np.nan)
    empty = bottom == 0
    return xp.where(empty, empty_value, top / xp.where(empty, 1.0, bottom))[()]


@struct
class Mean:
    """A sum and the number of its values; both scalars."""

    sum: Total
    count: Total

    def compute(self) -> Total:
        """Return the mean. With count 0: nan on the host (numpy totals), 0 for jax arrays, inside and outside `jit`."""
        return ratio(self.sum, self.count)


def broadcast_mask(mask: Mask, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Return the mask as booleans of `shape`, broadcast over the trailing dimensions that the mask lacks."""
    mask = jnp.asarray(mask) != 0
    return jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim)), shape)


def masked_mean(values: Shaped[Array, "..."], mask: Mask) -> Mean:
    """Sum and count the values that the mask selects. The values have any real type or bool."""
    values = jnp.asarray(values)
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))  # float64 stays, for checks of derivatives
    mask = broadcast_mask(mask, values.shape)
    return Mean(jnp.where(mask, values, 0.0).sum(), mask.sum(dtype=jnp.float32))


def shared_mean(values: Shaped[Array, "..."], mask: Mask) -> tuple[Array, Mean]:
    """Return this device's share of the mean over all devices, to be differentiated, and that mean, for the log."""
    local = masked_mean(values, mask)
    total = collectives.psum(local)
    return local.sum / jnp.maximum(total.count, 1), total


def values_at_labels(
    values: Float[Array, "*batch classes"], labels: Integer[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Return the value at each row's label; NaN for a label that is not a class.

    Hidden labels are written as -1, which would silently index the last class. NaN stops the run and names the term.
    """
    # a select, because the gradient of a gather is a scatter into zeros: three more passes over a large vocabulary
    is_label = jnp.arange(values.shape[-1]) == labels[..., None]
    picked = jnp.sum(jnp.where(is_label, values, 0), axis=-1)
    return jnp.where((labels >= 0) & (labels < values.shape[-1]), picked, jnp.nan)


def add(a: PyTree, b: PyTree) -> PyTree:
    """Add two trees of metrics on the host in numpy float64; a float32 count would stop at 2^24."""
    return jax.tree.map(lambda x, y: np.asarray(x, np.float64) + np.asarray(y, np.float64), a, b)
