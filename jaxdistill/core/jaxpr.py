"""Functions on jaxprs: interpret their equations, find inner jaxprs, and remove dead code.

A jaxpr is a traced program: a list of equations, each a primitive with operands and parameters. All knowledge of how
releases of JAX represent calls, loops and literals is in this file.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun  # type: ignore[attr-defined]  # its stub omits one
from jax.interpreters import partial_eval

from jaxdistill.core.types import PyTree

# primitives that run an inner program once, with their own operands as inputs
CALLS = {
    *("checkpoint", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
    *("jit", "pjit", "remat2"),
}

Rule = Callable[[Any, list[Any]], Sequence[Any]]  # (equation, operands) -> results


def evaluate(program: Any, constants: Sequence[Any], operands: Sequence[Any], rule: Rule) -> list[Any]:
    """Interpret a jaxpr equation by equation.

    Args:
        program: a jaxpr that is not closed.
        constants: its constants.
        operands: its inputs, of any type that the rule accepts.
        rule: computes the results of one equation.
    """
    values = dict(zip((*program.constvars, *program.invars), (*constants, *operands), strict=True))
    value = lambda atom: atom.val if is_literal(atom) else values[atom]
    for equation in program.eqns:
        values.update(zip(equation.outvars, rule(equation, [value(x) for x in equation.invars]), strict=True))
    return [value(atom) for atom in program.outvars]


def is_literal(atom: Any) -> bool:
    """Return True if an operand of an equation is a literal in the jaxpr."""
    return hasattr(atom, "val")


def bind_equation(equation: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """Apply an equation's primitive to operands."""
    results = equation.primitive.bind(*operands, **equation.params)
    return results if equation.primitive.multiple_results else [results]


def run_equation(equation: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """Run an equation on arrays as a program of its own, which also keeps a custom derivative."""
    pairs = zip(equation.invars, operands, strict=True)
    inputs = {atom: value for atom, value in pairs if not is_literal(atom)}
    program = jax.make_jaxpr(lambda: ())().jaxpr.replace(
        constvars=[], invars=list(inputs), outvars=equation.outvars, eqns=[equation]
    )
    return jaxpr_as_fun(ClosedJaxpr(program, ()))(*inputs.values())


def inner_programs(equation: Any) -> list[Any]:
    """Return the jaxprs inside an equation: bodies of loops, branches, called functions."""
    leaves = (getattr(leaf, "jaxpr", leaf) for leaf in jax.tree.leaves(equation.params))
    return [leaf for leaf in leaves if hasattr(leaf, "eqns")]


def called_program(equation: Any) -> tuple[Any, Sequence[Any]] | None:
    """Return the jaxpr that a call runs on its own operands, and the constants; None for any other equation."""
    if equation.primitive.name not in CALLS:
        return None
    programs = [leaf for leaf in jax.tree.leaves(equation.params) if hasattr(getattr(leaf, "jaxpr", leaf), "eqns")]
    if not programs or len(inner_programs(equation)[0].invars) != len(equation.invars):
        return None
    return inner_programs(equation)[0], getattr(programs[0], "consts", ())


def trip_count(equation: Any) -> int:
    """Return how often an equation runs its inner programs, over all devices; 1 if unknown."""
    params = equation.params
    match equation.primitive.name:
        case "scan":
            return params["length"]
        case "shard_map":  # each device runs the body once
            return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
        case "pallas_call":
            return math.prod(params["grid_mapping"].grid)
    return 1


def count_primitive(program: Any, name: str) -> int:
    """Count the executions of a primitive, including every iteration of every loop."""
    total = 0
    for equation in program.eqns:
        total += trip_count(equation) * sum(count_primitive(inner, name) for inner in inner_programs(equation))
        total += equation.primitive.name == name
    return total


def eliminate_dead_code(program: Any) -> tuple[Any, list[bool]]:
    """Return a jaxpr without the equations that its results do not need, and one bool per input: is it used?"""
    return partial_eval.dce_jaxpr(program, [True] * len(program.outvars), instantiate=False)


def used_inputs(function: Callable[..., Any], *args: PyTree) -> PyTree:
    """Return a tree of bools like the arguments: does any result of the function depend on this input?

    Args:
        function: pure.
        args: arrays, or their shapes.
    """
    program = jax.make_jaxpr(function)(*args).jaxpr
    return jax.tree.unflatten(jax.tree.structure(args), eliminate_dead_code(program)[1])


def mentioned_inputs(function: Callable[..., Any], *args: PyTree) -> PyTree:
    """Return a tree of bools like the arguments: does any equation take this input, even if no result needs it?"""
    program = jax.make_jaxpr(function)(*args).jaxpr
    mentioned = {id(x) for equation in program.eqns for x in equation.invars}
    return jax.tree.unflatten(jax.tree.structure(args), [id(x) in mentioned for x in program.invars])
