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
    """Interpret a jaxpr: compute its equations in order with the function `rule`, and return the outputs.

    Args:
        program: an open jaxpr (`ClosedJaxpr.jaxpr`).
        constants: values of the jaxpr's `constvars`.
        operands: values of the jaxpr's inputs, of any type that the rule accepts.
        rule: `(equation, operands) -> results`; computes one equation.
    """
    values = dict(zip((*program.constvars, *program.invars), (*constants, *operands), strict=True))
    value = lambda atom: atom.val if is_literal(atom) else values[atom]
    for equation in program.eqns:
        values.update(zip(equation.outvars, rule(equation, [value(x) for x in equation.invars]), strict=True))
    return [value(atom) for atom in program.outvars]


def is_literal(atom: Any) -> bool:
    """Return True if an operand of an equation is a constant written into the jaxpr, not a variable."""
    return hasattr(atom, "val")


def bind_equation(equation: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """Apply the primitive of an equation to operands, and return its results."""
    results = equation.primitive.bind(*operands, **equation.params)
    return results if equation.primitive.multiple_results else [results]


def run_equation(equation: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """Run a jaxpr equation on arrays, and return its results.

    The equation runs as a jaxpr of one equation, which keeps custom derivatives such as `jax.custom_vjp`.
    """
    pairs = zip(equation.invars, operands, strict=True)
    inputs = {atom: value for atom, value in pairs if not is_literal(atom)}
    program = jax.make_jaxpr(lambda: ())().jaxpr.replace(
        constvars=[], invars=list(inputs), outvars=equation.outvars, eqns=[equation]
    )
    return jaxpr_as_fun(ClosedJaxpr(program, ()))(*inputs.values())


def inner_programs(equation: Any) -> list[Any]:
    """Return the jaxprs in the parameters of an equation, as a list: bodies of loops, branches, called functions."""
    leaves = (getattr(leaf, "jaxpr", leaf) for leaf in jax.tree.leaves(equation.params))
    return [leaf for leaf in leaves if hasattr(leaf, "eqns")]


def called_program(equation: Any) -> tuple[Any, Sequence[Any]] | None:
    """Return the `(jaxpr, constants)` that a call equation such as `jit` runs, or None for any other equation."""
    if equation.primitive.name not in CALLS:
        return None
    programs = [leaf for leaf in jax.tree.leaves(equation.params) if hasattr(getattr(leaf, "jaxpr", leaf), "eqns")]
    if not programs or len(inner_programs(equation)[0].invars) != len(equation.invars):
        return None
    return inner_programs(equation)[0], getattr(programs[0], "consts", ())


def trip_count(equation: Any) -> int:
    """Return how often an equation runs the jaxprs in its parameters, such as the `length` of a `scan`.

    Runs on all devices of a `shard_map` are counted. If the number is unknown, as for `while`, it counts as 1.
    """
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
    """Count how often a jaxpr executes a primitive; each iteration of a `scan` and each device of a `shard_map` counts.

    Args:
        program: an open jaxpr (`ClosedJaxpr.jaxpr`).
        name: name of the primitive, such as "random_bits".
    """
    total = 0
    for equation in program.eqns:
        total += trip_count(equation) * sum(count_primitive(inner, name) for inner in inner_programs(equation))
        total += equation.primitive.name == name
    return total


def eliminate_dead_code(program: Any) -> tuple[Any, list[bool]]:
    """Remove the equations and inputs of a jaxpr that none of its outputs needs.

    Args:
        program: an open jaxpr (`ClosedJaxpr.jaxpr`).

    Returns:
        The new jaxpr, and a list of bools: for each input of the old jaxpr, whether it is still an input.
    """
    return partial_eval.dce_jaxpr(program, [True] * len(program.outvars), instantiate=False)


def used_inputs(function: Callable[..., Any], *args: PyTree) -> PyTree:
    """Find the input arrays that the results of a function depend on, as a tree of bools.

    Args:
        function: a pure function.
        args: the arguments: trees of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
        A tree of bools with the structure of `args`.
    """
    program = jax.make_jaxpr(function)(*args).jaxpr
    return jax.tree.unflatten(jax.tree.structure(args), eliminate_dead_code(program)[1])


def mentioned_inputs(function: Callable[..., Any], *args: PyTree) -> PyTree:
    """Find the input arrays that a function computes with, even if no result depends on them, as a tree of bools.

    Args:
        function: a pure function.
        args: the arguments: trees of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
        A tree of bools with the structure of `args`.
    """
    program = jax.make_jaxpr(function)(*args).jaxpr
    mentioned = {id(x) for equation in program.eqns for x in equation.invars}
    return jax.tree.unflatten(jax.tree.structure(args), [id(x) in mentioned for x in program.invars])
