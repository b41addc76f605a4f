"""Rewrite a trained network for 8-bit integer files: finite attention masks, no `erf`, no negative row indices.

A file in 8-bit integers has one range for each array. A mask of minus infinity would stretch the range of attention
scores until no integer is left for the scores themselves. NPUs have neither `erf` nor `select`, and the quantizer
leaves `neg` and `reduce_max` in floats. The trace of the network (its jaxpr) is rewritten, so that models need no
change:

    where(mask, x, -inf)      mask x - MASK (1 - mask), where mask is 1 or 0; so is x + c, where c is 0 or -inf
    erf(z), erfc(z)           tanh(1.1284 z + 0.1009 z^3), which differs by at most 4e-4
    softmax(x - max(x))       softmax(x): the file's own softmax subtracts the maximum
    -x                        -1 x
    where(i < 0, i + n, i)    i: no row of a table is counted from its end
    a lookup of rows          one that reads the last row for a number that is too large

exp(-24) is 0 in a softmax of 8 bits, unless all real scores are below -17. Other infinite constants stay as they are.
`tanh` stands for `erf` in the GELU of Hendrycks and Gimpel, 2016 (arxiv.org/abs/1606.08415), section 2.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.core.jaxpr import bind_equation, called_program, evaluate
from jaxdistill.core.types import Array, RowsLike
from jaxdistill.export.network import Network

INFINITE, MASK = 1e30, 24.0
LINEAR, CUBIC = 2 / np.sqrt(np.pi), 0.1009  # erf(z) is about tanh(LINEAR z + CUBIC z^3)


class _Softmax(NamedTuple):
    """An intermediate array of a softmax that subtracts its maximum, such as the maximum or the sum of exponentials.

    value: the array
    unshifted: the array as it would be without the subtraction; None for the maximum itself
    axes: the axes over which the maximum was taken
    origin: identity of the exponentials that the array holds, or was summed from
    """

    value: Array
    unshifted: Array | None
    axes: tuple[int, ...] = ()
    origin: object = None


class _Negative(NamedTuple):
    """The comparison of an array of integers with 0: `value` is True where the array `of` is negative."""

    of: Array
    value: Array


def for_integers(network: Network) -> Callable[[RowsLike], Array]:
    """Return a function that approximates a network with operations that 8-bit integer files and NPUs have.

    Pixels that the network reads as bytes may be given as floats: converting bytes is no operation of integer files.
    Each operation is named after the layer whose weights were used last; compilers of devices report this name.

    Args:
        network: a trained model as a function of a batch.
    """

    def rewritten(rows: RowsLike) -> Array:
        variables = jax.tree.map(np.asarray, network.variables)
        as_read = {n: jax.ShapeDtypeStruct(x.shape, network.inputs[n][1]) for n, x in rows.items()}
        traced = jax.make_jaxpr(lambda v, rows: network.apply(v, rows)[network.output])(variables, as_read)
        layers = {id(x): name.rpartition("/")[0] for part in variables for name, x in part.items()}
        operands = jax.tree.leaves((variables, rows))
        (out,) = _Interpreter(layers).run(traced.jaxpr, traced.consts, operands)
        return _value(out)

    return rewritten


class _Interpreter:
    """An interpreter that evaluates a jaxpr, with the rewriting rules of this module.

    Args:
        layers: name of the layer of each weight, by the weight's `id`.
    """

    def __init__(self, layers: Mapping[int, str]):
        self._layers, self._layer = layers, ""

    def run(self, program: Any, constants: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
        return evaluate(program, constants, operands, self._equation)

    def _equation(self, equation: Any, operands: list[Any]) -> Sequence[Any]:
        if called := called_program(equation):
            return self.run(*called, operands)
        for x in operands:
            self._layer = self._layers.get(id(x), self._layer)
        if not any(map(_is_traced, operands)):
            with jax.ensure_compile_time_eval():  # computed now, so that rules see the constant of a mask
                return bind_equation(equation, operands)
        name, arrays = equation.primitive.name, [*map(_value, operands)]
        with jax.named_scope(self._layer) if self._layer else contextlib.nullcontext():
            if name in RULES and (value := RULES[name](equation, operands, arrays)) is not None:
                return [value]
            return bind_equation(equation, arrays)


def _reduce_max(equation: Any, operands: list[Any], arrays: list[Any]) -> Any:
    return _Softmax(bind_equation(equation, arrays)[0], None)


def _max(equation: Any, operands: list[Any], arrays: list[Any]) -> Any:
    """Replace max(m, -infinity), where m is the maximum of a softmax, by m."""
    softmaxes = [x for x in operands if isinstance(x, _Softmax)]
    others = [x for x in operands if not isinstance(x, _Softmax)]
    return softmaxes[0] if len(softmaxes) == 1 and all(map(_is_least, others)) else None


def _moved(equation: Any, operands: list[Any], arrays: list[Any]) -> Any:
    """Apply an operation that adds or reorders axes to the maximum of a softmax, or to its sum of exponentials."""
    (x,) = operands
    if not isinstance(x, _Softmax) or x.axes:
        return None
    moved = lambda array: bind_equation(equation, [array])[0]
    return x._replace(value=moved(x.value), unshifted=None if x.unshifted is None else moved(x.unshifted))


def _sub(equation: Any, operands: list[Any], arrays: list[Any]) -> Any:
    x, y = operands
    if not isinstance(y, _Softmax) or y.unshifted is not None or isinstance(x, _Softmax):
        return None
    axes = tuple(axis for axis, size in enumerate(y.value.shape) if size == 1 < x.shape[axis])
    return _Softmax(bind_equation(equation, arrays)[0], x, axes) if axes and x.ndim == y.value.ndim else None


def _exp(equation: Any, operands: list[Any], arrays: list[Any]) -> Any:
    (x,) = operands
    if not isinstance(x, _Softmax) or x.unshifted is None:
        return None
    return _Softmax(jnp.exp(x.value), jnp.exp(x.unshifted), x.axes, object())


def _reduce_sum(equation: Any, operands: list[Any], arrays: list[Any]) -> Any:
    (x,) = operands
    if not isinstance(x, _Softmax) or x.unshifted is None or tuple(equation.params["axes"]) != x.axes:
        return None
    total = lambda array: bind_equation(equation, [array])[0]
    return _Softmax(total(x.value), total(x.unshifted), (), x.origin)


def _div(equation: Any, operands: list[Any], arrays: list[Any]) -> Any:
    x, y = operands
    if not isinstance(x, _Softmax) or not isinstance(y, _Softmax) or not x.axes or y.axes:
        return None
    is_softmax = x.origin is not None and x.origin is y.origin
    return bind_equation(equation, [x.unshifted, y.unshifted])[0] if is_softmax else None


def _select_n(equation: Any, operands: list[Any], arrays: list[Any]) -> Any:
    condition, *cases = arrays
    if isinstance(operands[0], _Negative) and len(cases) == 2 and cases[0] is operands[0].of:
        return cases[0]  # the number of a row, or that number from the end of the table
    if not _is_traced(condition) and (condition.all() or not condition.any()):
        return cases[int(condition.all())]
    masked = [number for number, x in enumerate(cases) if _is_least(x)]
    if len(cases) != 2 or len(masked) != 1 or condition.dtype != bool:
        return None
    (number,) = masked
    is_kept = condition.astype(cases[1 - number].dtype)  # 1 for the second case
    return _masked(cases[1 - number], is_kept if number == 0 else 1.0 - is_kept)


def _add(equation: Any, operands: list[Any], arrays: list[Any]) -> Any:
    for x, constant in (arrays, arrays[::-1]):
        where = _is_infinite(constant, -1.0)
        if where is not None and where.any() and _is_traced(x):
            finite = np.where(where, 0, constant).astype(constant.dtype)
            return _masked(x + finite, np.where(where, 0, 1).astype(constant.dtype))
    return None


def _masked(x: Array, is_kept: Any) -> Array:
    """Return attention scores with -MASK in place of those where `is_kept` is 0."""
    return x * is_kept + MASK * (is_kept - 1.0)


def _lt(equation: Any, operands: list[Any], arrays: list[Any]) -> Any:
    x, least = arrays
    is_number = not _is_traced(least) and jnp.issubdtype(x.dtype, np.integer) and not np.any(least)
    return _Negative(x, bind_equation(equation, arrays)[0]) if is_number else None


def _gather(equation: Any, operands: list[Any], arrays: list[Any]) -> Any:
    params = {**equation.params, "mode": jax.lax.GatherScatterMode.CLIP, "fill_value": None}
    return equation.primitive.bind(*map(jnp.asarray, arrays), **params)


def _erf(z: Array) -> Array:
    return jnp.tanh(z * (LINEAR + CUBIC * z * z))


RULES: dict[str, Callable[[Any, list[Any], list[Any]], Any]] = {  # None: the equation stays as it is
    "reduce_max": _reduce_max,
    "max": _max,
    **dict.fromkeys(("broadcast_in_dim", "reshape", "stop_gradient", "transpose"), _moved),
    "add": _add,
    "sub": _sub,
    "exp": _exp,
    "reduce_sum": _reduce_sum,
    "div": _div,
    "select_n": _select_n,
    "lt": _lt,
    "gather": _gather,
    "erf": lambda equation, operands, arrays: _erf(arrays[0]),
    "erfc": lambda equation, operands, arrays: 1.0 - _erf(arrays[0]),
    "neg": lambda equation, operands, arrays: -1 * arrays[0] if jnp.issubdtype(arrays[0].dtype, np.floating) else None,
}


def _value(x: Any) -> Any:
    return x.value if isinstance(x, _Softmax | _Negative) else x


def _is_traced(x: Any) -> bool:
    return isinstance(_value(x), jax.core.Tracer)


def _is_infinite(x: Any, sign: float) -> np.ndarray | None:
    """Return a boolean mask of the entries of a constant that are infinite, or huge, with the sign `sign`.

    Return None for an array that is traced, and therefore no constant, or has no float dtype.
    """
    if _is_traced(x) or not jnp.issubdtype(jnp.result_type(x), np.floating):
        return None
    return np.asarray(np.asarray(x) * sign > INFINITE)


def _is_least(x: Any) -> bool:
    """Return True for a constant whose entries are all minus infinity, or the least number of its dtype."""
    where = _is_infinite(x, -1.0)
    return where is not None and bool(where.all())
