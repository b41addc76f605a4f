"""Input ranges for quantisation-aware training: running ranges of the inputs of weights, kept in the model's state."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.compress.added import CALLS, RANGE
from jaxdistill.core.collectives import gather
from jaxdistill.core.interfaces import Model
from jaxdistill.core.marked_arrays import Combine
from jaxdistill.core.types import Array, RowsLike, Variables

MOMENTUM = 0.99  # decay of the running range of inputs, as in TensorFlow's fake_quant
WIDEST = Combine(  # combines the ranges of two products with the same weight
    lambda a, b: jnp.stack([jnp.minimum(a[..., 0], b[..., 0]), jnp.maximum(a[..., 1], b[..., 1])], -1),
    lambda x: jnp.stack([x[..., 0].min(0), x[..., 1].max(0)], -1),
)


def with_ranges(variables: Variables, ranges: Mapping[str, Array]) -> Variables:
    """Return the variables of a quantised model: those of the float model, with the input ranges added to the state.

    Args:
        variables: variables of the model without a quantizer.
        ranges: least and greatest input, `[..., 2]`, by name of the weight.
    """
    added = {CALLS: jnp.zeros((), jnp.int32), **{name + RANGE: x for name, x in ranges.items()}}
    return variables._replace(state={**variables.state, **added})


def require_ranges(model: Model, ranges: Mapping[str, Array], batch: RowsLike) -> None:
    """Require that the input ranges from a file fit the weights of a quantised model.

    Args:
        model: the model that will use the ranges, wrapped by its quantizer.
        ranges: least and greatest input, `[..., 2]`, by name of the weight.
        batch: a batch, or its shapes.

    Raises:
        ValueError: a range is missing, belongs to an unknown weight, is not finite, or does not include 0.
    """
    wanted = ranges_in(jax.eval_shape(model.init, jax.random.key(0), batch)[1])
    shapes = {name: x.shape for name, x in ranges.items()}
    if shapes != {name: x.shape for name, x in wanted.items()}:
        raise ValueError("it has ranges of other weights than the model")
    for name, x in ranges.items():
        if not (jnp.isfinite(x).all() and (x[..., 0] <= 0).all() and (x[..., 1] >= 0).all()):
            raise ValueError(f"the range of {name} is not finite, or does not hold 0")


def ranges_in(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the input ranges in a model's state, as a dict of arrays `[..., 2]` by name of the weight."""
    return {name.removesuffix(RANGE): x for name, x in state.items() if name.endswith(RANGE)}


def running(span: Array, x: Array, train: bool) -> Array:
    """Update a running range `[2]` of inputs with those of a batch on all devices.

    Every range includes 0. A range of zeros means that there was no batch yet; the result is then that of the batch.

    Args:
        span: the least and the greatest input so far.
        x: the inputs in this batch.
        train: if False, a known range is returned unchanged.
    """
    ends = jnp.stack([jnp.minimum(x.min(), 0), jnp.maximum(x.max(), 0)]).astype(jnp.float32)
    everywhere = gather(ends[None])  # [devices, 2] under pmap
    batch = jnp.stack([everywhere[:, 0].min(), everywhere[:, 1].max()])
    known = MOMENTUM * span + (1 - MOMENTUM) * batch if train else span
    return jnp.where((span == 0).all(), batch, known)
