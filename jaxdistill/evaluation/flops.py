"""Count the FLOPs of a traced program: matrix products and convolutions, with every iteration of loops.

XLA's own `cost_analysis` counts the body of a loop once, for example 1 layer of 64. This module walks the jaxpr
instead, and multiplies the FLOPs of the body of a scan by the length of the scan. An operation that is repeated on the
same operands counts once, because the compiler merges the repetitions. A rematerialised layer counts twice, because it
is computed twice.
"""

import itertools
import math
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

from jaxdistill.core import jaxpr

CHECKPOINTS = {"checkpoint", "remat2"}  # primitives whose operations run twice, and so count twice


class Flops(NamedTuple):
    """The number of FLOPs (floating-point operations) of a traced program.

    total: FLOPs over all devices
    unknown: number of `while` loops that contain FLOPs. Their numbers of iterations are unknown, so `total` includes
        one iteration of each
    """

    total: float
    unknown: int


def flops(program: Any) -> Flops:
    """Count the FLOPs of the matrix products and convolutions of a program, with every iteration of `scan`.

    Operations whose results are not needed are not counted, because the compiler removes them.

    Args:
        program: a closed jaxpr.
    """
    needed, _ = jaxpr.eliminate_dead_code(program.jaxpr)
    counter = _Counter()
    count, _ = counter.program(needed, [next(counter.fresh) for _ in needed.invars], {})
    return Flops(count, counter.unknown)


class _Counter:
    """A counter of FLOPs that recognises repeated operations.

    It gives every value of a program a number, so that an operation is known by its name and the numbers of its
    operands.
    """

    def __init__(self) -> None:
        self.fresh: Iterator[int] = itertools.count()
        self.unknown = 0

    def program(self, program: Any, arguments: list[int], known: dict[Hashable, list[int]]) -> tuple[float, list[int]]:
        """Count the FLOPs of a jaxpr; an operation that is repeated on the same operands counts once.

        Args:
            program: the jaxpr.
            arguments: a number for each input of the jaxpr; equal values have equal numbers.
            known: the numbers of the results of every operation so far. The key of an operation consists of its name,
                the numbers of its operands and its parameters.

        Returns:
            The FLOPs, and the number of each result of the jaxpr.
        """
        values: dict[Any, int] = dict(zip(program.invars, arguments, strict=True))
        total = 0.0

        def number(value: Any) -> int:
            if jaxpr.is_literal(value):
                return known.setdefault(("literal", str(value.aval), str(value.val)), [next(self.fresh)])[0]
            # a value without a number is a constant; give it the next one
            return values.setdefault(value, next(self.fresh))

        for equation in program.eqns:
            operands = [number(value) for value in equation.invars]
            inner = None if equation.primitive.name in CHECKPOINTS else jaxpr.called_program(equation)
            simple = not jaxpr.inner_programs(equation)
            key = (equation.primitive.name, *operands, str(equation.params)) if simple else object()
            if inner is not None:
                count, results = self.program(inner[0], operands, known)
                total += count
            elif key in known:
                results = known[key]
            else:
                total += self.operation(equation)
                results = known[key] = [next(self.fresh) for _ in equation.outvars]
            values.update(zip(equation.outvars, results, strict=True))
        return total, [number(value) for value in program.outvars]

    def operation(self, equation: Any) -> float:
        """Count the FLOPs of one operation (a jaxpr equation), including the programs inside it.

        A `scan` counts every iteration, a `while` loop counts one, and a `cond` counts its most expensive branch. A
        Pallas kernel with a cost estimate counts the FLOPs of the estimate.
        """
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
            self.program(inner, [next(self.fresh) for _ in inner.invars], {})[0]
            for inner in jaxpr.inner_programs(equation)
        ]
        if name == "cond":
            return max(counts, default=0.0)
        self.unknown += name == "while" and sum(counts) > 0
        return jaxpr.trip_count(equation) * sum(counts)
