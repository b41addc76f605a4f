"""Run a traced model while some of its arrays are marked: objects such as 8-bit kernels, which have rules of their own.

The model's code knows nothing of marks. Its jaxpr is interpreted equation by equation. A rule of the caller computes an
equation that has a marked operand, such as a matrix product with an 8-bit kernel. Calls, scans over stacked layers and
rematerialised parts are run with the same rules inside. Any other operation gets the marked array as plain floats.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr  # type: ignore[attr-defined]  # its stub omits it

from jaxdistill.core.jaxpr import evaluate, run_equation
from jaxdistill.core.types import Array


class MarkedArray:
    """The base class of pytrees that stand for one array of a traced function.

    The leaves of a stacked array have the layers as their first axis, so that a scan can split them.
    """

    def plain(self) -> Array:
        """Return the array of floats that it stands for."""
        raise NotImplementedError


Collected = dict[str, Array]  # arrays that rules return beside the outputs, by name; those of a scan are stacked
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
        collected: gets the arrays that rules return beside the outputs. Names inside a scan get one array for each
            iteration, stacked.

    Returns:
        The outputs of the jaxpr: arrays, or a `MarkedArray` for a marked input that the function returns.
    """

    def results(equation: Any, operands: list[Any]) -> Sequence[Any]:
        if not any(isinstance(x, MarkedArray) for x in operands):
            return run_equation(equation, operands)
        name = equation.primitive.name
        if name in CALLS:
            return CALLS[name](equation, operands, rules, collected)
        outputs = rules[name](equation, operands, collected) if name in rules else None
        return run_equation(equation, [*map(plain, operands)]) if outputs is None else outputs

    return evaluate(traced.jaxpr, traced.consts, inputs, results)


def _closed(program: Any) -> ClosedJaxpr:
    return program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())


def _call(equation: Any, operands: list[Any], rules: Mapping[str, Rule], collected: Collected) -> list[Any]:
    return run_marked(_closed(equation.params["jaxpr"]), operands, rules, collected)


def _checkpoint(equation: Any, operands: list[Any], rules: Mapping[str, Rule], collected: Collected) -> list[Any]:
    """Run a rematerialised part, which is rematerialised again."""

    def run(operands: list[Any]) -> tuple[list[Any], Collected]:
        inner: Collected = {}
        outputs = run_marked(_closed(equation.params["jaxpr"]), operands, rules, inner)
        return [*map(plain, outputs)], inner

    options = {key: equation.params[key] for key in ("policy", "prevent_cse")}
    outputs, inner = jax.checkpoint(run, **options)(operands)
    collected.update(inner)
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

    def body(carry: list[Any], layer: list[Any]) -> tuple[list[Any], tuple[list[Any], Collected]]:
        found: Collected = {}
        outputs = [*map(plain, run_marked(inner, [*constants, *carry, *layer], rules, found))]
        return outputs[:carries], (outputs[carries:], found)

    options = {key: equation.params[key] for key in ("length", "reverse", "unroll")}
    last, (stacked, found) = jax.lax.scan(body, [*map(plain, start)], stacks, **options)
    collected.update(found)
    return [*last, *stacked]


CALLS: Mapping[str, Callable[..., list[Any]]] = {
    "jit": _call,
    "checkpoint": _checkpoint,
    "remat2": _checkpoint,
    "scan": _scan,
}
