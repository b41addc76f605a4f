"""Run a traced model with marked arrays: objects in place of some arrays, such as 8-bit kernels, with their own rules.

The model's code knows nothing of marks. Its jaxpr is interpreted equation by equation. A rule of the caller computes an
equation that has a marked operand, such as a matrix product with an 8-bit kernel. Calls, scans over stacked layers and
rematerialised parts are run with the same rules inside. Any other operation gets the marked array as plain floats.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr  # type: ignore[attr-defined]  # its stub omits it

from jaxdistill.core.jaxpr import evaluate, run_equation
from jaxdistill.core.types import Array


class MarkedArray:
    """The base class of pytrees that replace one array of a traced function, such as a kernel in 8 bits.

    The rules of `run_marked` compute equations that have such an operand. If layers are stacked, all leaves of the
    pytree have the layers as their first axis, so that a scan can split them. `name` identifies the array where a rule
    collects values about it (see `Collected`).
    """

    name: Any = ""

    def plain(self) -> Array:
        """Return the plain array of floats that this object replaces."""
        raise NotImplementedError


class Combine(NamedTuple):
    """An operation that combines the arrays which rules collect under one name, such as a sum or a maximum.

    pair: `(array, array) -> array`; combines two arrays elementwise
    first_axis: `(array) -> array`; combines an array along its first axis
    """

    pair: Callable[[Array, Array], Array]
    first_axis: Callable[[Array], Array]


class Collected:
    """A collection of arrays that rules compute beside a model's outputs, such as input ranges, by name.

    The name is that of the marked array. In a scan over stacked layers, a rule collects one array in each iteration.
    These arrays are stacked if the marked array is stacked as well, and combined if all iterations share it.

    Args:
        combine: how to combine the arrays that several equations collect under one name.
    """

    def __init__(self, combine: Combine):
        self.combine = combine
        self.arrays: dict[str, Array] = {}

    def add(self, name: str, x: Array) -> None:
        """Add an array to the collection; combine it with an earlier array of that name."""
        self.arrays[name] = self.combine.pair(self.arrays[name], x) if name in self.arrays else x

    def add_all(self, arrays: Mapping[str, Array], shared: Collection[str] = ()) -> None:
        """Add arrays by name; those with a name in `shared` are first combined along their first axis."""
        for name, x in arrays.items():
            self.add(name, self.combine.first_axis(x) if name in shared else x)


NOTHING = Combine(lambda a, b: b, lambda x: x)  # for rules that return nothing beside the outputs
Rule = Callable[[Any, list[Any], Collected], list[Any] | None]  # (equation, operands, collected) -> outputs
"""Compute an equation with a marked operand; None: its operands are made plain, and it runs as it is."""


def plain(x: Any) -> Any:
    """Convert a marked array to floats; return any other value unchanged."""
    return x.plain() if isinstance(x, MarkedArray) else x


def run_marked(
    traced: ClosedJaxpr, inputs: Sequence[Any], rules: Mapping[str, Rule], collected: Collected
) -> list[Any]:
    """Run a traced function (a jaxpr) with some of its inputs replaced by `MarkedArray`s, and return its outputs.

    An equation with a marked operand is computed by the rule for its primitive. If there is no rule, or the rule
    returns None, the marked operands are converted to floats. Calls, scans and `jax.checkpoint` are run with the same
    rules inside.

    Args:
        traced: the closed jaxpr of the function, traced with plain arrays.
        inputs: the inputs of the jaxpr: arrays, or a `MarkedArray` for some of them.
        rules: functions that compute an equation with a marked operand, by name of the primitive.
        collected: receives the arrays that rules compute beside the outputs.

    Returns:
        The outputs of the jaxpr: arrays, or a `MarkedArray` for a marked input that the function returns.
    """

    def results(equation: Any, operands: list[Any]) -> Sequence[Any]:
        if not any(isinstance(x, MarkedArray) for x in operands):
            return run_equation(equation, operands)
        name = equation.primitive.name
        if name in INSIDE:
            return INSIDE[name](equation, operands, rules, collected)
        outputs = rules[name](equation, operands, collected) if name in rules else None
        return run_equation(equation, [*map(plain, operands)]) if outputs is None else outputs

    return evaluate(traced.jaxpr, traced.consts, inputs, results)


def _closed(program: Any) -> ClosedJaxpr:
    return program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())


def _call(equation: Any, operands: list[Any], rules: Mapping[str, Rule], collected: Collected) -> list[Any]:
    return run_marked(_closed(equation.params["jaxpr"]), operands, rules, collected)


def _checkpoint(equation: Any, operands: list[Any], rules: Mapping[str, Rule], collected: Collected) -> list[Any]:
    """Run an equation of `jax.checkpoint` with the same rules inside, and under `jax.checkpoint` again."""

    def run(operands: list[Any]) -> tuple[list[Any], dict[str, Array]]:
        inner = Collected(collected.combine)
        outputs = run_marked(_closed(equation.params["jaxpr"]), operands, rules, inner)
        return [*map(plain, outputs)], inner.arrays

    options = {key: equation.params[key] for key in ("policy", "prevent_cse")}
    outputs, inner = jax.checkpoint(run, **options)(operands)
    collected.add_all(inner)
    return outputs


def _scan(equation: Any, operands: list[Any], rules: Mapping[str, Rule], collected: Collected) -> list[Any]:
    """Run a scan over stacked layers: each iteration gets one layer of each stacked `MarkedArray`."""
    inner = _closed(equation.params["jaxpr"])
    # Releases of JAX name the counts of constants and carries differently, so shapes tell them: stacked inputs lose an
    # axis inside the body, constants and carries do not; only carries come out again.
    same_shape = lambda outer, body: [a.aval.shape == b.aval.shape for a, b in zip(outer, body, strict=True)]
    carries = sum(same_shape(equation.outvars, inner.jaxpr.outvars))
    constant_count = sum(same_shape(equation.invars, inner.jaxpr.invars)) - carries
    end = constant_count + carries
    constants, start, stacks = operands[:constant_count], operands[constant_count:end], operands[end:]

    def body(carry: list[Any], layer: list[Any]) -> tuple[list[Any], tuple[list[Any], dict[str, Array]]]:
        kept = Collected(collected.combine)
        outputs = [*map(plain, run_marked(inner, [*constants, *carry, *layer], rules, kept))]
        return outputs[:carries], (outputs[carries:], kept.arrays)

    options = {key: equation.params[key] for key in ("length", "reverse", "unroll")}
    last, (stacked, arrays) = jax.lax.scan(body, [*map(plain, start)], stacks, **options)
    collected.add_all(arrays, shared={x.name for x in operands[:end] if isinstance(x, MarkedArray)})
    return [*last, *stacked]


INSIDE: Mapping[str, Callable[..., list[Any]]] = {  # primitives that are run with the same rules inside
    "jit": _call,
    "checkpoint": _checkpoint,
    "remat2": _checkpoint,
    "scan": _scan,
}
