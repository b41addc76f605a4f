"""FLOPs of a traced program: of matrix products and convolutions, with every turn of its loops.

XLA's own `cost_analysis` counts the body of a loop once, say 1 layer of 64. Here the program that JAX traced is walked,
a scan's body times its length. What is computed twice from the same values counts once, as the compiler merges it; a
layer that is rematerialised counts twice, as it is computed twice.
"""

import itertools
import math
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import jax
from jax.interpreters import partial_eval

INLINED = {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}


class Flops(NamedTuple):
    """total: FLOPs of the whole program, over all devices. unknown: loops whose turns are not known, counted once."""

    total: float
    unknown: int


def flops(program: Any) -> Flops:
    """FLOPs of a closed jaxpr, without what its results do not need."""
    needed, _ = partial_eval.dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars), instantiate=True)
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
            if hasattr(value, "val"):  # a literal
                return known.setdefault(("literal", str(value.aval), str(value.val)), [next(self.fresh)])[0]
            return values.setdefault(value, next(self.fresh))  # a constant of the program is met here first

        for equation in program.eqns:
            operands = [number(value) for value in equation.invars]
            inner = _inlined(equation)
            key = (equation.primitive.name, *operands, str(equation.params)) if not _bodies(equation) else object()
            if inner is not None:
                count, results = self.body(inner, operands, known)
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
        counts = [self.body(inner, [next(self.fresh) for _ in inner.invars], {})[0] for inner in _bodies(equation)]
        if name == "cond":
            return max(counts, default=0.0)
        self.unknown += name == "while" and sum(counts) > 0
        return _turns(name, params) * sum(counts)


def _turns(name: str, params: Any) -> int:
    """How often a body runs, over all devices."""
    if name == "scan":
        return params["length"]
    if name == "shard_map":  # every device has its own share
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return math.prod(params["grid_mapping"].grid) if name == "pallas_call" else 1


def _bodies(equation: Any) -> list[Any]:
    """The programs inside an operation."""
    leaves = (getattr(leaf, "jaxpr", leaf) for leaf in jax.tree.leaves(equation.params))
    return [leaf for leaf in leaves if hasattr(leaf, "eqns")]


def _inlined(equation: Any) -> Any:
    if equation.primitive.name not in INLINED:
        return None
    bodies = _bodies(equation)
    return bodies[0] if bodies and len(bodies[0].invars) == len(equation.invars) else None
