"""From a function of one row of logits to its nodes, by its jaxpr: no divergence is written a second time for a kernel.

Divergences, and their gradients as JAX takes them, are pointwise operations and folds over the classes. What is no such
function is refused, by the name of what it does instead.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.core import jaxpr
from jaxdistill.core.kernels.passes import ONLINE, Node
from jaxdistill.core.kernels.primitives import FOLDS, MOVES, PAIRS, POINTWISE, held, pointwise
from jaxdistill.core.types import Array

FEW = 64  # numbers of a row in one array, each a node of its own; of classes there are more


class Unsupported(ValueError):
    """A function that does more than pointwise operations and folds over the classes; `what` it does beside."""

    def __init__(self, what: str):
        super().__init__(
            f"kernels='pallas' is for pointwise operations and sums over classes, but {what}; set it to 'xla'"
        )


def is_nodes(value: Any) -> bool:
    """Whether a value is an array of nodes, for it differs from row to row."""
    return isinstance(value, np.ndarray) and value.dtype == object


def _each(function: Callable[..., Node], *arrays: Any) -> np.ndarray:
    """A function of nodes, element by element."""
    return np.asarray(np.frompyfunc(function, len(arrays), 1)(*arrays), object)


class Graph:
    """Reads a jaxpr, on values of what all rows have in common, and on arrays of nodes of the rest.

    An array over classes is one of nodes whose last dimension is 1, so that numpy may move the others about.

    Args:
        classes: how many, more than `FEW`.
    """

    def __init__(self, classes: int):
        if classes <= FEW:
            raise Unsupported(f"there are {classes} classes, and must be more than {FEW}")
        self.classes = classes
        self.made: dict[Any, Node] = {}  # the same operation on the same nodes is one node
        self.common: dict[Any, tuple[Node, Array, Array]] = {}  # numbers that all rows share: node, number, whole array

    def read(self, function: Callable[..., Any], common: Sequence[Any], rows: Sequence[Any]) -> tuple[Any, Any, Any]:
        """Nodes of the rows' arguments that are needed, by their number; the results; and the shapes of these.

        A result is an array of nodes, or a value where it is the same for all rows.

        Args:
            function: `(*common, *rows) -> list of arrays`.
            common: arrays; what depends on them alone is computed at once.
            rows: shapes of the arrays of one row; those whose last dimension is `classes` are wide.

        Raises:
            Unsupported: it is more than pointwise operations and folds over the classes.
        """
        closed = jax.make_jaxpr(function)(*common, *rows)
        program, used = jaxpr.needed(closed.jaxpr)
        if jaxpr.count(program, "random_bits"):
            raise Unsupported("this draws at random, and every row would meet the same draw")
        given = {i: self.argument(x) for i, x in enumerate(rows) if used[len(common) + i]}
        first = [x for x, is_used in zip(common, used, strict=False) if is_used]
        return given, jaxpr.evaluate(program, closed.consts, [*first, *given.values()], self.results), closed.out_avals

    def is_wide(self, shape: Sequence[int]) -> bool:
        """Whether an array of a shape has a number for every class."""
        return tuple(shape[-1:]) == (self.classes,)

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of the array of nodes for an array."""
        found = (*shape[:-1], 1) if self.is_wide(shape) else tuple(shape)
        if np.prod(found, dtype=int) > FEW:
            raise Unsupported(f"this computes with {list(shape)} numbers")
        return found

    def argument(self, like: Any) -> np.ndarray:
        """New nodes for an array of every row."""
        make = lambda _: Node("given", (), None, self.is_wide(like.shape), held(like.dtype))
        return _each(make, np.empty(self.shape(like.shape)))

    def nodes(self, value: Any) -> np.ndarray:
        """Any value as nodes."""
        if is_nodes(value):
            return value
        shape = np.shape(value)
        if self.is_wide(shape):
            raise Unsupported(f"this computes with {list(shape)} numbers that all rows have in common")
        found = np.empty(self.shape(shape), object)
        for index in np.ndindex(found.shape):
            found[index] = self.number(value, index)
        return found

    def number(self, value: Any, index: tuple[int, ...]) -> Node:
        """Of a value that all rows have in common: a constant, or what is known when it runs."""
        dtype = held(jnp.result_type(value))
        if isinstance(value, jax.core.Tracer):
            new = Node("given", (), None, False, dtype), value[index], value  # an array that is kept keeps its id
            return self.common.setdefault((id(value), index), new)[0]
        constant = np.asarray(value, dtype)[index]
        return self.node(f"constant {constant.tobytes()!r}", "", (), lambda: jnp.full((1, 1), constant), False, dtype)

    def node(self, name: str, params: Any, of: Sequence[Node], call: Any, wide: bool, dtype: Any) -> Node:
        """That of an operation, which is new unless it was asked for before."""
        key = (name, str(params), str(dtype), *map(id, of))
        return self.made.setdefault(key, Node(name, of, call, wide, dtype))

    def results(self, equation: Any, operands: list[Any]) -> Sequence[Any]:
        """Of one operation."""
        if inner := jaxpr.called(equation):
            return jaxpr.evaluate(*inner, operands, self.results)
        shapes = [x.aval.shape for x in equation.outvars]
        of_rows = any(self.is_wide(shape) and np.prod(shape[:-1], dtype=int) <= FEW for shape in shapes)
        if of_rows or any(map(is_nodes, operands)):
            return self.of_nodes(equation, list(map(self.nodes, operands)))
        return jaxpr.bound(equation, operands)

    def of_nodes(self, equation: Any, operands: list[np.ndarray]) -> Sequence[np.ndarray]:
        """Of one operation on nodes."""
        name, params, shape = equation.primitive.name, equation.params, equation.outvars[0].aval.shape
        if name in POINTWISE:
            return [self.pointwise(equation, operands)]
        if name in PAIRS:
            return [self.reduced(equation, *operands)]
        if name == "iota" and self.is_wide(shape) and params["dimension"] == len(shape) - 1:
            return [np.full(self.shape(shape), self.node("classes", "", (), None, True, params["dtype"]), object)]
        if name == "unstack":
            return list(np.moveaxis(operands[0], params["axis"], 0))
        keeps = self.is_wide(shape) or not any(self.is_wide(x.aval.shape) for x in equation.invars)
        if name in MOVES and keeps:
            return [MOVES[name](self.shape(shape), params, *operands)]
        given = " and ".join(str(list(x.aval.shape)) for x in equation.invars)
        raise Unsupported(f"this takes {name!r} of {given} numbers")

    def pointwise(self, equation: Any, operands: list[np.ndarray]) -> np.ndarray:
        """Of a pointwise one."""
        name, params, dtype = equation.primitive.name, equation.params, held(equation.outvars[0].aval.dtype)

        def one(*of: Node) -> Node:
            if name == "div" and of[0].wide > of[1].wide and jnp.issubdtype(dtype, jnp.floating):
                inverse = self.node("inverse", "", of[1:], lambda x: 1 / x, False, dtype)  # one division for a row
                return self.node("mul", "", (of[0], inverse), jnp.multiply, True, dtype)
            return self.node(name, params, of, pointwise(equation), any(node.wide for node in of), dtype)

        return _each(one, *operands)

    def reduced(self, equation: Any, operand: np.ndarray) -> np.ndarray:
        """Of a sum or maximum, over the classes or other dimensions."""
        name, axes, shape = equation.primitive.name, list(equation.params["axes"]), equation.invars[0].aval.shape
        if self.is_wide(shape) and len(shape) - 1 in axes:
            axes.remove(len(shape) - 1)
            operand = _each(lambda node: self.folded(name, node), operand[..., 0])
        pair = lambda a, b: self.node(f"pair {name}", "", (a, b), PAIRS[name], a.wide or b.wide, a.dtype)
        rest = np.moveaxis(operand, axes, range(len(axes))).reshape(-1, *np.delete(operand.shape, axes))
        return np.asarray(reduce(lambda a, b: _each(pair, a, b), rest), object)

    def folded(self, name: str, node: Node) -> Node:
        """A node's sum, or maximum, over the classes."""
        if name not in FOLDS or (name != "reduce_sum" and not jnp.issubdtype(node.dtype, jnp.floating)):
            raise Unsupported(f"this takes {name!r} over classes")
        if name == "reduce_sum" and node.name == "exp" and node.of[0].name == "sub":
            x, shift = node.of[0].of  # sum exp(x - shift) need not wait for the shift, a maximum mostly
            if x.wide and not shift.wide and shift.level > x.level:
                kept = self.made.setdefault(("online", x), Node("online", (x,), None, False, x.dtype, ONLINE))
                scaled = lambda kept, shift: kept[1] * jnp.exp(kept[0] - shift)
                return self.node("scaled", "", (kept, shift), scaled, False, x.dtype)
        return self.made.setdefault((name, node), Node(name, (node,), None, False, node.dtype, FOLDS[name]))
