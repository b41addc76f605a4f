"""Ranges of the inputs of products: running means over batches, in the state of a model that trains for few bits."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.compress.added import CALLS, RANGE
from jaxdistill.core.collectives import gather
from jaxdistill.core.interfaces import Model
from jaxdistill.core.marked_arrays import Combine
from jaxdistill.core.types import Array, RowsLike, Variables

MOMENTUM = 0.99  # of the running range of inputs, as in TensorFlow's fake_quant
WIDEST = Combine(  # of the ranges of two products of one weight
    lambda a, b: jnp.stack([jnp.minimum(a[..., 0], b[..., 0]), jnp.maximum(a[..., 1], b[..., 1])], -1),
    lambda x: jnp.stack([x[..., 0].min(0), x[..., 1].max(0)], -1),
)


def with_ranges(variables: Variables, ranges: Mapping[str, Array]) -> Variables:
    """Return the variables of a model together with the ranges of its inputs, for the model that `serving` builds."""
    added = {CALLS: jnp.zeros((), jnp.int32), **{name + RANGE: x for name, x in ranges.items()}}
    return variables._replace(state={**variables.state, **added})


def require_ranges(model: Model, ranges: Mapping[str, Array], batch: RowsLike) -> None:
    """Check the ranges that were read from a file.

    Args:
        model: the wrapped model that will use them.
        ranges: least and greatest input, `[..., 2]`, by name of the weight.
        batch: a batch, or its shapes.

    Raises:
        ValueError: a range is missing, unknown, not finite, or does not hold 0.
    """
    wanted = ranges_in(jax.eval_shape(model.init, jax.random.key(0), batch)[1])
    shapes = {name: x.shape for name, x in ranges.items()}
    if shapes != {name: x.shape for name, x in wanted.items()}:
        raise ValueError("it has ranges of other weights than the model")
    for name, x in ranges.items():
        if not (jnp.isfinite(x).all() and (x[..., 0] <= 0).all() and (x[..., 1] >= 0).all()):
            raise ValueError(f"the range of {name} is not finite, or does not hold 0")


def ranges_in(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ranges of inputs among the state, `[..., 2]` each, by name of the weight."""
    return {name.removesuffix(RANGE): x for name, x in state.items() if name.endswith(RANGE)}


def running(span: Array, x: Array, train: bool) -> Array:
    """Return the range `[2]` of inputs after a batch; before the first batch, that of the batch itself."""
    ends = jnp.stack([jnp.minimum(x.min(), 0), jnp.maximum(x.max(), 0)]).astype(jnp.float32)
    everywhere = gather(ends[None])  # [devices, 2] under pmap
    batch = jnp.stack([everywhere[:, 0].min(), everywhere[:, 1].max()])
    known = MOMENTUM * span + (1 - MOMENTUM) * batch if train else span
    return jnp.where((span == 0).all(), batch, known)
