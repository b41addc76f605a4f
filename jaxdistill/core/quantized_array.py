"""A trace of a model, run again with some of its kernels in 8 bits.

Casts, calls, scans over stacked layers and products keep a kernel as it is; whatever else reads one gets floats made
of it, and is right, if no cheaper.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr  # type: ignore[attr-defined]  # its stub omits it

from jaxdistill.core.jaxpr import alone, evaluate
from jaxdistill.core.types import Array, struct

Kind = Literal["int8", "fp8"]
DTYPES = {"int8": (jnp.int8, 127.0), "fp8": (jnp.float8_e4m3fn, 448.0)}


@struct
class QuantizedArray:
    """A kernel in 8 bits.

    Args:
        values: `[..., inputs, outputs]`, int8 or fp8
        scale: `[..., 1, outputs]` float32
        dtype: of the floats that it stands for
    """

    values: Array
    scale: Array
    dtype: Any = dataclasses.field(metadata={"static": True})

    def wide(self) -> Array:
        """As floats."""
        return (self.values.astype(jnp.float32) * self.scale).astype(self.dtype)


def narrow(x: Array, axes: int | Sequence[int], kind: Any) -> tuple[Array, Array]:
    """`(values, scale)` in 8 bits, a scale for all that lies along `axes`, which it keeps with size 1."""
    (dtype, most), x = DTYPES[kind], x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=axes, keepdims=True), 1e-30) / most
    return (jnp.round(x / scale) if kind == "int8" else x / scale).astype(dtype), scale


def wide(x: Any) -> Array:
    """Floats, as they are or made of 8 bits."""
    return x.wide() if isinstance(x, QuantizedArray) else x


Rule = Callable[[Any, list[Any]], list[Any] | None]  # (an equation of the trace, its inputs) -> outputs; None: floats


def run(traced: ClosedJaxpr, given: Sequence[Any]) -> list[Any]:
    """A trace with some of its inputs narrow."""

    def results(eqn: Any, inputs: list[Any]) -> Sequence[Any]:
        rule = RULES.get(eqn.primitive.name) if any(isinstance(x, QuantizedArray) for x in inputs) else None
        found = rule(eqn, inputs) if rule else None
        return alone(eqn, [*map(wide, inputs)]) if found is None else found

    return evaluate(traced.jaxpr, traced.consts, given, results)


def _closed(inner: Any) -> ClosedJaxpr:
    return inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())


def _cast(eqn: Any, given: list[Any]) -> list[Any]:
    return [dataclasses.replace(given[0], dtype=eqn.params["new_dtype"])]


def _call(eqn: Any, given: list[Any]) -> list[Any]:
    return run(_closed(eqn.params["jaxpr"]), given)


def _scan(eqn: Any, given: list[Any]) -> list[Any]:
    inner = _closed(eqn.params["jaxpr"])
    # Told by shapes, for releases of JAX count them in unlike words: rows are stacked, what is carried comes out again
    whole = lambda outer, own: [a.aval.shape == b.aval.shape for a, b in zip(outer, own, strict=True)]
    carried = sum(whole(eqn.outvars, inner.jaxpr.outvars))
    fixed = sum(whole(eqn.invars, inner.jaxpr.invars)) - carried
    constants, start, rows = given[:fixed], given[fixed : fixed + carried], given[fixed + carried :]

    def body(carry: list[Any], row: list[Any]) -> tuple[list[Any], list[Any]]:
        found = [*map(wide, run(inner, [*constants, *carry, *row]))]
        return found[:carried], found[carried:]

    how = {key: eqn.params[key] for key in ("length", "reverse", "unroll")}
    last, stacked = jax.lax.scan(body, [*map(wide, start)], rows, **how)
    return [*last, *stacked]


def _product(eqn: Any, given: list[Any]) -> list[Any] | None:
    """An input times a kernel in 8 bits; any other product is left to floats."""
    x, kernel = given
    (inputs, summed), (rows, _) = eqn.params["dimension_numbers"]
    if isinstance(x, QuantizedArray) or rows or any(kernel.scale.shape[axis] > 1 for axis in summed):
        return None
    kind = next(kind for kind, (dtype, _) in DTYPES.items() if kernel.values.dtype == dtype)
    values, scale = narrow(x, inputs, kind)
    exact = jnp.int32 if kind == "int8" else jnp.float32
    numbers = eqn.params["dimension_numbers"]
    y = jax.lax.dot_general(values, kernel.values, numbers, preferred_element_type=exact)
    own, free = jnp.squeeze(scale, inputs), kernel.values.ndim - len(summed)
    y = y.astype(jnp.float32) * own.reshape(*own.shape, *[1] * free) * jnp.squeeze(kernel.scale, summed)
    return [y.astype(eqn.outvars[0].aval.dtype)]


RULES: Mapping[str, Rule] = {
    "convert_element_type": _cast,
    "jit": _call,
    "checkpoint": _call,
    "remat2": _call,
    "scan": _scan,
    "dot_general": _product,
}
