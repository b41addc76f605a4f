"""Run a traced model while some of its arrays are marked: objects such as 8-bit kernels, which have rules of their own.

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
    """The base class of pytrees that stand for one array of a traced function.

    The leaves of a stacked array have the layers as their first axis, so that a scan can split them. `name` is the name
    under which rules collect arrays of it.
    """

    name: Any = ""

    def plain(self) -> Array:
        """Return the array of floats that it stands for."""
        raise NotImplementedError


class Combine(NamedTuple):
    """How arrays of one name are combined, such as a sum.

    pair: combines two arrays
    first_axis: combines an array along its first axis
    """

    pair: Callable[[Array, Array], Array]
    first_axis: Callable[[Array], Array]


class Collected:
    """Arrays that rules return beside the outputs, by the name of a marked array.

    In a scan over stacked layers, those of a stacked array are stacked, too; those of an array that all iterations
    share are combined.

    Args:
        combine: combines the arrays of a marked array that several equations use.
    """

    def __init__(self, combine: Combine):
        self.combine = combine
        self.arrays: dict[str, Array] = {}

    def add(self, name: str, x: Array) -> None:
        """Add an array."""
        self.arrays[name] = self.combine.pair(self.arrays[name], x) if name in self.arrays else x

    def add_all(self, arrays: Mapping[str, Array], shared: Collection[str] = ()) -> None:
        """Add the arrays of a part; those in `shared` are first combined along their first axis."""
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
    """Run a traced function with some of its inputs marked, and return its outputs.

    Args:
        traced: the closed jaxpr of the function, traced with plain arrays.
        inputs: the inputs of the jaxpr: arrays, or a `MarkedArray` for some of them.
        rules: how equations with a marked operand are computed, by name of the primitive.
        collected: gets the arrays that rules return beside the outputs.

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
    """Run a rematerialised part, which is rematerialised again."""

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
