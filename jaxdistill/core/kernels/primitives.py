"""The JAX primitives that a generated kernel supports: pointwise operations, reductions, and moves of dimensions.

A primitive is computed in one of three ways. A pointwise one becomes a function of blocks `[rows, tile]` that, with few
exceptions, binds the primitive itself, so that its meaning is that of JAX. A reduction over the classes becomes a
`Reduction`, and one over other dimensions a chain of pairwise operations. A move, such as a reshape or a transpose,
changes no number: numpy applies it to the array of nodes during tracing, and it costs the kernel nothing. Floats of
fewer than 32 bits are computed in float32. Any other primitive is refused (`trace.py`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdistill.core.kernels.passes import MAX, MIN, SUM
from jaxdistill.core.types import Array

ARITHMETIC = {"abs", "add", "add_any", "div", "integer_pow", "max", "min", "mul", "neg", "pow", "sign", "square", "sub"}
ELEMENTARY = {"erf", "exp", "exp2", "expm1", "log", "log1p", "logistic", "rsqrt", "sqrt", "tanh"}
CHOICES = {"and", "clamp", "eq", "ge", "gt", "is_finite", "le", "lt", "ne", "not", "or", "select_n", "xor"}
POINTWISE = ARITHMETIC | ELEMENTARY | CHOICES | {"convert_element_type"}
REDUCTIONS = {"reduce_sum": SUM, "reduce_max": MAX, "reduce_min": MIN}  # reduction over the classes
PAIRWISE = {  # the same of two numbers, for reductions over other dimensions
    "reduce_sum": jnp.add,
    "reduce_max": jnp.maximum,
    "reduce_min": jnp.minimum,
    "reduce_and": jnp.logical_and,
    "reduce_or": jnp.logical_or,
}


def pointwise(equation: Any) -> Callable[..., Array]:
    """Return the function that computes a pointwise jaxpr equation on blocks of numbers in a kernel.

    Args:
        equation: a jaxpr equation whose primitive is in `POINTWISE`.

    Returns:
        `(*blocks) -> block`; a block is `[rows, 1]`, or `[rows, tile]` for a tile (range) of the classes.
    """
    dtype = compute_dtype(equation.outvars[0].aval.dtype)
    match equation.primitive.name:
        case "convert_element_type":
            return lambda x: x.astype(dtype)
        case "add_any":
            return jnp.add
        case "sign":  # its lowering for TPUs queries the TPU of the machine that compiles, which may have none
            return lambda x: jnp.where(x > 0, 1, jnp.where(x < 0, -1, x)).astype(dtype)
    return lambda *blocks: equation.primitive.bind(*jnp.broadcast_arrays(*blocks), **equation.params)


def compute_dtype(dtype: Any) -> Any:
    """Return the dtype in which a kernel computes with values of `dtype`.

    Floats are computed in float32 or more, because not every TPU can compute in bfloat16.
    """
    return np.dtype(np.float32) if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4 else dtype


def _broadcast(x: np.ndarray, dimensions: Sequence[int | np.integer], shape: Sequence[int]) -> np.ndarray:
    """Broadcast an array as `jax.lax.broadcast_in_dim` does: dimension i of `x` becomes `dimensions[i]` of `shape`."""
    sizes = dict(zip(dimensions, x.shape, strict=True))
    return np.broadcast_to(x.reshape([sizes.get(axis, 1) for axis in range(len(shape))]), shape)


def _slice(x: np.ndarray, start: Sequence[int], end: Sequence[int], stride: Sequence[int] | None) -> np.ndarray:
    return x[tuple(map(slice, start, end, stride or [1] * x.ndim))]


Move = Callable[..., np.ndarray]
MOVES: dict[str, Move] = {  # `(new shape, params, *arrays of nodes)`
    "broadcast_in_dim": lambda shape, params, x: _broadcast(x, params["broadcast_dimensions"], shape),
    "concatenate": lambda shape, params, *arrays: np.concatenate(arrays, params["dimension"]),
    "copy": lambda shape, params, x: x,
    "reshape": lambda shape, params, x: x.reshape(shape),
    "reshard": lambda shape, params, x: x,  # a single row is never split
    "slice": lambda shape, params, x: _slice(x, params["start_indices"], params["limit_indices"], params["strides"]),
    "squeeze": lambda shape, params, x: np.squeeze(x, params["dimensions"]),
    "stack": lambda shape, params, *arrays: np.stack(arrays, params["axis"]),
    "stop_gradient": lambda shape, params, x: x,
    "transpose": lambda shape, params, x: np.transpose(x, params["permutation"]),
}
