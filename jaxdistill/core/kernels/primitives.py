"""The operations of a jaxpr that a kernel knows: pointwise ones, folds, and moves of leading dimensions."""

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
FOLDS = {"reduce_sum": SUM, "reduce_max": MAX, "reduce_min": MIN}
PAIRS = {  # how a fold joins two numbers, over dimensions other than the classes
    "reduce_sum": jnp.add,
    "reduce_max": jnp.maximum,
    "reduce_min": jnp.minimum,
    "reduce_and": jnp.logical_and,
    "reduce_or": jnp.logical_or,
}


def pointwise(equation: Any) -> Callable[..., Array]:
    """The function of blocks of an equation whose name is in `POINTWISE`."""
    dtype = held(equation.outvars[0].aval.dtype)
    match equation.primitive.name:
        case "convert_element_type":
            return lambda x: x.astype(dtype)
        case "add_any":
            return jnp.add
        case "sign":  # of which the TPU's lowering asks the machine that compiles what TPU it has
            return lambda x: jnp.where(x > 0, 1, jnp.where(x < 0, -1, x)).astype(dtype)
    return lambda *blocks: equation.primitive.bind(*jnp.broadcast_arrays(*blocks), **equation.params)


def held(dtype: Any) -> Any:
    """The type in which numbers of a type are held: of floats float32 at least, for not every TPU computes in less."""
    return np.dtype(np.float32) if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4 else dtype


def _spread(x: np.ndarray, dimensions: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """With the dimensions of a shape, its own being in the places that are given."""
    sizes = dict(zip(dimensions, x.shape, strict=True))
    return np.broadcast_to(x.reshape([sizes.get(axis, 1) for axis in range(len(shape))]), shape)


def _sliced(x: np.ndarray, start: Sequence[int], end: Sequence[int], stride: Sequence[int] | None) -> np.ndarray:
    return x[tuple(map(slice, start, end, stride or [1] * x.ndim))]


Move = Callable[..., np.ndarray]
MOVES: dict[str, Move] = {  # `(new shape, params, *arrays of nodes)`
    "broadcast_in_dim": lambda shape, params, x: _spread(x, params["broadcast_dimensions"], shape),
    "concatenate": lambda shape, params, *arrays: np.concatenate(arrays, params["dimension"]),
    "copy": lambda shape, params, x: x,
    "reshape": lambda shape, params, x: x.reshape(shape),
    "reshard": lambda shape, params, x: x,  # no row is split
    "slice": lambda shape, params, x: _sliced(x, params["start_indices"], params["limit_indices"], params["strides"]),
    "squeeze": lambda shape, params, x: np.squeeze(x, params["dimensions"]),
    "stack": lambda shape, params, *arrays: np.stack(arrays, params["axis"]),
    "stop_gradient": lambda shape, params, x: x,
    "transpose": lambda shape, params, x: np.transpose(x, params["permutation"]),
}
