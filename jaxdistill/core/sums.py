"""Sums over rows: a mean is kept as a sum and a count until everything has been added up."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped

from jaxdistill.core import collectives
from jaxdistill.core.types import Array, PyTree, struct

Total = Any  # a sum: a jax array in a step, numpy float64 on the host, a shape under `eval_shape`


Mask = Shaped[Array, "..."]  # `[*batch]` or its leading dimensions; what is not 0 counts once


def ratio(top: Total, bottom: Total) -> Total:
    """`top / bottom`; where nothing was counted, 0 for jax arrays and nan for numpy totals.

    In a step an empty mask must give a zero with a zero gradient; in a report a zero would look like a measurement.
    """
    xp, nothing = (jnp, 0.0) if isinstance(bottom, jax.Array) else (np, np.nan)
    empty = bottom == 0
    return xp.where(empty, nothing, top / xp.where(empty, 1.0, bottom))[()]


@struct
class Mean:
    """A sum and how many values are in it; both scalars."""

    sum: Total
    count: Total

    def compute(self) -> Total:
        """The mean. With count 0: nan on the host (numpy totals), 0 for jax arrays, inside and outside `jit`."""
        return ratio(self.sum, self.count)


def selected(mask: Mask, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """The mask as booleans of `shape`, broadcast over the trailing dimensions it lacks."""
    mask = jnp.asarray(mask) != 0
    return jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim)), shape)


def mean_of(values: Shaped[Array, "..."], mask: Mask) -> Mean:
    """Sums the values, of any real type or bool, that the mask selects."""
    values = jnp.asarray(values)
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))  # float64 stays: a derivative is checked in it
    mask = selected(mask, values.shape)
    return Mean(jnp.where(mask, values, 0.0).sum(), mask.sum(dtype=jnp.float32))


def shared_mean(values: Shaped[Array, "..."], mask: Mask) -> tuple[Array, Mean]:
    """This device's share of the mean over all of them, to be differentiated, and that mean, for the log."""
    found = mean_of(values, mask)
    whole = collectives.psum(found)
    return found.sum / jnp.maximum(whole.count, 1), whole


def of_label(values: Float[Array, "*batch classes"], labels: Integer[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The value of each row's label; NaN for a label that is no class.

    -1, as hidden labels are written, would silently be the last class; NaN stops a run and names the term.
    """
    # selected, for a gather's gradient is a scatter into zeros: three more sweeps over a large vocabulary
    named = jnp.arange(values.shape[-1]) == labels[..., None]
    found = jnp.sum(jnp.where(named, values, 0), axis=-1)
    return jnp.where((labels >= 0) & (labels < values.shape[-1]), found, jnp.nan)


def add(a: PyTree, b: PyTree) -> PyTree:
    """Adds two trees of metrics on the host, in numpy float64: a float32 count stops at 2^24."""
    return jax.tree.map(lambda x, y: np.asarray(x, np.float64) + np.asarray(y, np.float64), a, b)
