"""FLOPs of a traced program: of matrix products and convolutions, with every turn of its loops.

XLA's own `cost_analysis` counts the body of a loop once, say 1 layer of 64. Here the program that JAX traced is walked,
a scan's body times its length. What is computed twice from the same values counts once, as the compiler merges it; a
layer that is rematerialised counts twice, as it is computed twice.
"""

import itertools
import math
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

from jaxdistill.core import jaxpr

CHECKPOINTS = {"checkpoint", "remat2"}  # what they compute is computed again, and counts again


class Flops(NamedTuple):
    """total: FLOPs of the whole program, over all devices. unknown: loops whose turns are not known, counted once."""

    total: float
    unknown: int


def flops(program: Any) -> Flops:
    """FLOPs of a closed jaxpr, without what its results do not need."""
    needed, _ = jaxpr.needed(program.jaxpr)
    walk = _Walk()
    count, _ = walk.body(needed, [next(walk.fresh) for _ in needed.invars], {})
    return Flops(count, walk.unknown)


class _Walk:
    """Numbers values, so that the same operation on the same values is known again."""

    def __init__(self) -> None:
        self.fresh: Iterator[int] = itertools.count()
        self.unknown = 0

    def body(self, program: Any, given: list[int], known: dict[Hashable, list[int]]) -> tuple[float, list[int]]:
        """FLOPs and numbered results of a program; `known` is what has been computed where it runs."""
        values: dict[Any, int] = dict(zip(program.invars, given, strict=True))
        total = 0.0

        def number(value: Any) -> int:
            if jaxpr.is_literal(value):
                return known.setdefault(("literal", str(value.aval), str(value.val)), [next(self.fresh)])[0]
            return values.setdefault(value, next(self.fresh))  # a constant of the program is met here first

        for equation in program.eqns:
            operands = [number(value) for value in equation.invars]
            inner = None if equation.primitive.name in CHECKPOINTS else jaxpr.called(equation)
            whole = not jaxpr.inner_programs(equation)
            key = (equation.primitive.name, *operands, str(equation.params)) if whole else object()
            if inner is not None:
                count, results = self.body(inner[0], operands, known)
                total += count
            elif key in known:
                results = known[key]
            else:
                total += self.one(equation)
                results = known[key] = [next(self.fresh) for _ in equation.outvars]
            values.update(zip(equation.outvars, results, strict=True))
        return total, [number(value) for value in program.outvars]

    def one(self, equation: Any) -> float:
        """FLOPs of one operation."""
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            contracted = params["dimension_numbers"][0][0]
            shape = equation.invars[0].aval.shape
            return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
        if name == "conv_general_dilated":
            kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
            return 2.0 * math.prod(out) * math.prod(kernel) / kernel[params["dimension_numbers"].rhs_spec[0]]
        if name == "pallas_call" and params.get("cost_estimate") is not None:
            return float(params["cost_estimate"].flops)
        counts = [
            self.body(inner, [next(self.fresh) for _ in inner.invars], {})[0]
            for inner in jaxpr.inner_programs(equation)
        ]
        if name == "cond":
            return max(counts, default=0.0)
        self.unknown += name == "while" and sum(counts) > 0
        return jaxpr.turns(equation) * sum(counts)
