"""Programs as JAX traced them: run equation by equation, searched for inner programs, and asked what they need.

A jaxpr is a list of equations, each a primitive with operands and parameters. All knowledge of how releases of JAX
write calls, loops and literals is here.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun  # type: ignore[attr-defined]  # its stub omits one
from jax.interpreters import partial_eval

from jaxdistill.core.types import PyTree

# primitives that run an inner program once, on their own operands
CALLS = {
    *("checkpoint", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
    *("jit", "pjit", "remat2"),
}

Rule = Callable[[Any, list[Any]], Sequence[Any]]  # (equation, operands) -> results


def evaluate(program: Any, constants: Sequence[Any], operands: Sequence[Any], rule: Rule) -> list[Any]:
    """Runs a jaxpr with another meaning of its operations.

    Args:
        program: a jaxpr that is not closed.
        constants: its constants.
        operands: its inputs, of whatever type the rule takes.
        rule: the meaning of an equation.
    """
    values = dict(zip((*program.constvars, *program.invars), (*constants, *operands), strict=True))
    value = lambda atom: atom.val if is_literal(atom) else values[atom]
    for equation in program.eqns:
        values.update(zip(equation.outvars, rule(equation, [value(x) for x in equation.invars]), strict=True))
    return [value(atom) for atom in program.outvars]


def is_literal(atom: Any) -> bool:
    """Whether an operand of an equation is a constant in the program's text."""
    return hasattr(atom, "val")


def bound(equation: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """The results of an equation with its own meaning."""
    found = equation.primitive.bind(*operands, **equation.params)
    return found if equation.primitive.multiple_results else [found]


def alone(equation: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """The results of an equation with its own meaning and its own derivative, of arrays."""
    given = zip(equation.invars, operands, strict=True)
    known = {atom: value for atom, value in given if not is_literal(atom)}
    program = jax.make_jaxpr(lambda: ())().jaxpr.replace(
        constvars=[], invars=list(known), outvars=equation.outvars, eqns=[equation]
    )
    return jaxpr_as_fun(ClosedJaxpr(program, ()))(*known.values())


def inner_programs(equation: Any) -> list[Any]:
    """The jaxprs inside an equation: bodies of loops, branches, called functions."""
    leaves = (getattr(leaf, "jaxpr", leaf) for leaf in jax.tree.leaves(equation.params))
    return [leaf for leaf in leaves if hasattr(leaf, "eqns")]


def called(equation: Any) -> tuple[Any, Sequence[Any]] | None:
    """The program that a call runs on its own operands, and its constants; None for any other equation."""
    if equation.primitive.name not in CALLS:
        return None
    closed = [leaf for leaf in jax.tree.leaves(equation.params) if hasattr(getattr(leaf, "jaxpr", leaf), "eqns")]
    if not closed or len(inner_programs(equation)[0].invars) != len(equation.invars):
        return None
    return inner_programs(equation)[0], getattr(closed[0], "consts", ())


def turns(equation: Any) -> int:
    """How often an equation runs its inner programs, over all devices; 1 where that is not known."""
    params = equation.params
    match equation.primitive.name:
        case "scan":
            return params["length"]
        case "shard_map":  # every device has its own share
            return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
        case "pallas_call":
            return math.prod(params["grid_mapping"].grid)
    return 1


def count(program: Any, name: str) -> int:
    """How often a primitive runs, in every turn of every loop."""
    total = 0
    for equation in program.eqns:
        total += turns(equation) * sum(count(inner, name) for inner in inner_programs(equation))
        total += equation.primitive.name == name
    return total


def needed(program: Any) -> tuple[Any, list[bool]]:
    """A jaxpr without what its results do not need, and which of its inputs they need."""
    return partial_eval.dce_jaxpr(program, [True] * len(program.outvars), instantiate=False)


def reads(function: Callable[..., Any], *args: PyTree) -> PyTree:
    """Which of a function's inputs its results depend on: a tree of bools like the arguments.

    Args:
        function: pure.
        args: arrays, or their shapes.
    """
    program = jax.make_jaxpr(function)(*args).jaxpr
    return jax.tree.unflatten(jax.tree.structure(args), needed(program)[1])


def mentions(function: Callable[..., Any], *args: PyTree) -> PyTree:
    """Which of a function's inputs its program mentions at all: a tree of bools like the arguments."""
    program = jax.make_jaxpr(function)(*args).jaxpr
    mentioned = {id(x) for equation in program.eqns for x in equation.invars}
    return jax.tree.unflatten(jax.tree.structure(args), [id(x) in mentioned for x in program.invars])
