"""8-bit arrays, and the rules by which a traced model runs with some of its kernels in 8 bits.

Casts, calls, scans over stacked layers and matrix products keep a kernel in 8 bits. Any other operation gets the kernel
as floats: its result is right, but costs as much as without quantization.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr  # type: ignore[attr-defined]  # its stub omits it

from jaxdistill.core.marked_arrays import NOTHING, Collected, MarkedArray, Rule, run_marked
from jaxdistill.core.types import Array, struct

Kind = Literal["int8", "fp8"]
DTYPES = {"int8": (jnp.int8, 127.0), "fp8": (jnp.float8_e4m3fn, 448.0)}  # the dtype and its greatest value


@struct
class QuantizedArray(MarkedArray):
    """A kernel in 8 bits, which stands for `values * scale`, with one scale for each output channel.

    Args:
        values: `[..., inputs, outputs]`, int8 or fp8
        scale: `[..., 1, outputs]`, float32
        dtype: float dtype of the kernel that the 8-bit values stand for
    """

    values: Array
    scale: Array
    dtype: Any = dataclasses.field(metadata={"static": True})

    def plain(self) -> Array:
        """Return the kernel as floats: `values * scale`, computed in float32 and cast to `dtype`."""
        return (self.values.astype(jnp.float32) * self.scale).astype(self.dtype)


def quantize(x: Array, axes: int | Sequence[int], kind: Any) -> tuple[Array, Array]:
    """Quantize an array to 8 bits, so that `x` is about `values * scale`.

    Args:
        x: an array of floats.
        axes: the axes along which all values share one scale, `max(abs(x)) / greatest 8-bit value`.
        kind: "int8" or "fp8" (float8_e4m3fn).

    Returns:
        `(values, scale)`: 8-bit values with the shape of `x`, and float32 scales with size 1 along `axes`.
    """
    (dtype, greatest), x = DTYPES[kind], x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=axes, keepdims=True), 1e-30) / greatest
    return (jnp.round(x / scale) if kind == "int8" else x / scale).astype(dtype), scale


def run_quantized(traced: ClosedJaxpr, inputs: Sequence[Any]) -> list[Any]:
    """Run a traced function (a jaxpr) with some of its kernels as 8-bit arrays, and return its outputs.

    Args:
        traced: the closed jaxpr of the function, traced with float kernels.
        inputs: the inputs of the jaxpr: arrays, or a `QuantizedArray` for each kernel in 8 bits.

    Returns:
        The outputs of the jaxpr: arrays, or a `QuantizedArray` for an 8-bit kernel that the function returns.
    """
    return run_marked(traced, inputs, RULES, Collected(NOTHING))


def _cast(eqn: Any, operands: list[Any], collected: Collected) -> list[Any]:
    return [dataclasses.replace(operands[0], dtype=eqn.params["new_dtype"])]


def _product(eqn: Any, operands: list[Any], collected: Collected) -> list[Any] | None:
    """Multiply an array by an 8-bit kernel, after quantizing the array; return None for any other product."""
    x, kernel = operands
    (inputs, summed), (rows, _) = eqn.params["dimension_numbers"]
    if isinstance(x, QuantizedArray) or rows or any(kernel.scale.shape[axis] > 1 for axis in summed):
        return None
    kind = next(kind for kind, (dtype, _) in DTYPES.items() if kernel.values.dtype == dtype)
    values, scale = quantize(x, inputs, kind)
    accumulator = jnp.int32 if kind == "int8" else jnp.float32
    numbers = eqn.params["dimension_numbers"]
    y = jax.lax.dot_general(values, kernel.values, numbers, preferred_element_type=accumulator)
    x_scale, kernel_axes = jnp.squeeze(scale, inputs), kernel.values.ndim - len(summed)
    y = y.astype(jnp.float32) * x_scale.reshape(*x_scale.shape, *[1] * kernel_axes) * jnp.squeeze(kernel.scale, summed)
    return [y.astype(eqn.outvars[0].aval.dtype)]


RULES: Mapping[str, Rule] = {"convert_element_type": _cast, "dot_general": _product}
