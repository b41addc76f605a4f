"""Trace a function of one row of logits to a graph that a Pallas kernel can compute, so that losses need no kernels.

A row is a token (or example) with its logits; a node of the graph is one number of a row, or one number for each class.
Divergences, and their gradients as JAX derives them, consist of pointwise operations and reductions over the classes.
JAX traces the function to a jaxpr for one row, and dead code is removed. The equations are then interpreted in order.
What depends only on inputs that all rows share stays an ordinary JAX computation. What depends on a row becomes an
array of nodes: one node for each element, but a single node for a whole axis of classes, which then has size 1.
Reshapes, slices and transposes of the other dimensions then act on small numpy arrays of nodes and cost nothing in the
kernel. Equal operations on equal nodes give one node, so nothing is computed twice in a pass. The graph is right
because every equation is translated by itself, and an equation that has no translation is refused with its name. The
cost is tracing time, which grows with the number of equations, not with the number of classes.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.core import jaxpr
from jaxdistill.core.kernels.passes import ONLINE, Node
from jaxdistill.core.kernels.primitives import MOVES, PAIRWISE, POINTWISE, REDUCTIONS, compute_dtype, pointwise
from jaxdistill.core.types import Array

MAX_NODES = 64  # of one array; an axis that is longer is taken for that of the classes


class Unsupported(ValueError):
    """The error for a function that no kernel can compute: it does more than pointwise operations and reductions.

    Args:
        what: the operation that is not supported, as a clause such as "this takes 'sort' of [10] numbers".
    """

    def __init__(self, what: str):
        super().__init__(
            f"kernels='pallas' is for pointwise operations and sums over classes, but {what}; set it to 'xla'"
        )


def is_node_array(value: Any) -> bool:
    """Return True if a value is a NumPy array of `Node` objects, the symbols for values that differ between rows."""
    return isinstance(value, np.ndarray) and value.dtype == object


def _elementwise(function: Callable[..., Node], *arrays: Any) -> np.ndarray:
    """Apply a function of nodes to NumPy arrays of nodes, element by element."""
    return np.asarray(np.frompyfunc(function, len(arrays), 1)(*arrays), object)


class Graph:
    """The computation graph of a kernel, built from a jaxpr; a node is one operation on the values of a row (token).

    A value that differs between rows becomes a NumPy array of `Node` objects; a value that all rows share stays a JAX
    array. A node stands for a whole axis of classes, so an array `[..., classes]` becomes an array of nodes `[..., 1]`.
    NumPy can then reshape and transpose the other dimensions.

    Args:
        classes: the number of classes, more than `MAX_NODES`.
    """

    def __init__(self, classes: int):
        if classes <= MAX_NODES:
            raise Unsupported(f"there are {classes} classes, and must be more than {MAX_NODES}")
        self.classes = classes
        self.operations: dict[Any, Node] = {}  # the same operation on the same nodes is one node
        self.shared: dict[Any, tuple[Node, Array, Array]] = {}  # numbers that all rows share: node, number, its array

    def trace(self, function: Callable[..., Any], shared: Sequence[Any], rows: Sequence[Any]) -> tuple[Any, Any, Any]:
        """Trace a function of one row (token) to a jaxpr, and add its operations to the graph as nodes.

        Args:
            function: `(*shared, *rows) -> list of arrays`.
            shared: the arrays that all rows need; what depends on them alone is computed by JAX, outside the kernel.
            rows: shapes and dtypes of the arrays of one row; a last dimension of size `classes` is the axis of classes.

        Returns:
            `(inputs, results, kinds)`: `{index in rows: input nodes}` of the arrays that are used; the results, each an
            array of nodes, or a JAX array if it is the same for all rows; the shapes and dtypes of the results.

        Raises:
            Unsupported: the function does more than pointwise operations and reductions over the classes.
        """
        closed = jax.make_jaxpr(function)(*shared, *rows)
        program, used = jaxpr.eliminate_dead_code(closed.jaxpr)
        if jaxpr.count_primitive(program, "random_bits"):
            raise Unsupported("this draws at random, and every row would get the same draw")
        arguments = {i: self.argument(x) for i, x in enumerate(rows) if used[len(shared) + i]}
        used_shared = [x for x, is_used in zip(shared, used, strict=False) if is_used]
        operands = [*used_shared, *arguments.values()]
        return arguments, jaxpr.evaluate(program, closed.consts, operands, self.apply), closed.out_avals

    def is_per_class(self, shape: Sequence[int]) -> bool:
        """Return True if the last axis of an array of this shape is the axis of classes."""
        return tuple(shape[-1:]) == (self.classes,)

    def node_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the array of nodes that stands for an array of numbers.

        A node is a symbol for a value that the kernel computes; one node stands for a whole axis of classes.

        Args:
            shape: shape of the array of numbers.

        Raises:
            Unsupported: there would be more than `MAX_NODES` nodes.
        """
        nodes = (*shape[:-1], 1) if self.is_per_class(shape) else tuple(shape)
        if np.prod(nodes, dtype=int) > MAX_NODES:
            raise Unsupported(f"this computes with {list(shape)} numbers")
        return nodes

    def argument(self, like: Any) -> np.ndarray:
        """Create an array of input nodes for an argument whose value differs between rows (tokens).

        Args:
            like: shape and dtype of one row's array.
        """
        make = lambda _: Node("input", (), None, self.is_per_class(like.shape), compute_dtype(like.dtype))
        return _elementwise(make, np.empty(self.node_shape(like.shape)))

    def as_nodes(self, value: Any) -> np.ndarray:
        """Convert an array of numbers that all rows share to an array of nodes (symbols for values in the kernel).

        An array of nodes is returned unchanged.

        Raises:
            Unsupported: the array of numbers has an axis of classes, or more than `MAX_NODES` numbers.
        """
        if is_node_array(value):
            return value
        shape = np.shape(value)
        if self.is_per_class(shape):
            raise Unsupported(f"this computes with {list(shape)} numbers that all rows have in common")
        nodes = np.empty(self.node_shape(shape), object)
        for index in np.ndindex(nodes.shape):
            nodes[index] = self.shared_node(value, index)
        return nodes

    def shared_node(self, value: Any, index: tuple[int, ...]) -> Node:
        """Return the node (symbol for a value in the kernel) of one element of an array that all rows share.

        A traced JAX value becomes an input of the kernel, any other value a constant in the kernel.

        Args:
            value: the array.
            index: index of the element.
        """
        dtype = compute_dtype(jnp.result_type(value))
        if isinstance(value, jax.core.Tracer):
            # the value is kept beside its node, so that its id stays unique
            new = (Node("input", (), None, False, dtype), value[index], value)
            return self.shared.setdefault((id(value), index), new)[0]
        constant = np.asarray(value, dtype)[index]
        return self.node(f"constant {constant.tobytes()!r}", "", (), lambda: jnp.full((1, 1), constant), False, dtype)

    def node(self, name: str, params: Any, inputs: Sequence[Node], function: Any, per_class: bool, dtype: Any) -> Node:
        """Return the node (symbol for a value that the kernel computes) of an operation on other nodes.

        The same operation on the same nodes always gives the same node, so that it is computed once.

        Args:
            name: name of the operation.
            params: parameters of the operation, such as those of a jaxpr equation; compared by `str(params)`.
            inputs: the nodes that the operation takes.
            function: `(*blocks of the inputs) -> block`; computes the operation on arrays.
            per_class: True if the result has a number for each class.
            dtype: dtype of the result.
        """
        key = (name, str(params), str(dtype), *map(id, inputs))
        return self.operations.setdefault(key, Node(name, inputs, function, per_class, dtype))

    def apply(self, equation: Any, operands: list[Any]) -> Sequence[Any]:
        """Interpret one jaxpr equation: add it to the graph if its results differ between rows (tokens), else run it.

        Returns:
            The results: JAX arrays, or arrays of nodes (symbols for values that the kernel computes).
        """
        if inner := jaxpr.called_program(equation):
            return jaxpr.evaluate(*inner, operands, self.apply)
        shapes = [x.aval.shape for x in equation.outvars]
        few_nodes = lambda shape: np.prod(shape[:-1], dtype=int) <= MAX_NODES
        result_per_class = any(self.is_per_class(shape) and few_nodes(shape) for shape in shapes)
        if result_per_class or any(map(is_node_array, operands)):
            return self.apply_to_nodes(equation, list(map(self.as_nodes, operands)))
        return jaxpr.bind_equation(equation, operands)

    def apply_to_nodes(self, equation: Any, operands: list[np.ndarray]) -> Sequence[np.ndarray]:
        """Add one jaxpr equation to the graph, and return its results as arrays of nodes.

        Args:
            equation: the jaxpr equation.
            operands: its operands as arrays of nodes, the symbols for values that the kernel computes.

        Raises:
            Unsupported: no kernel can compute this equation.
        """
        name, params, shape = equation.primitive.name, equation.params, equation.outvars[0].aval.shape
        if name == "optimization_barrier":  # it only keeps XLA from fusing, which does not happen in a kernel
            return operands
        if name in POINTWISE:
            return [self.apply_pointwise(equation, operands)]
        if name in PAIRWISE:
            return [self.apply_reduction(equation, *operands)]
        if name == "iota" and self.is_per_class(shape) and params["dimension"] == len(shape) - 1:
            classes = self.node("classes", "", (), None, True, params["dtype"])
            return [np.full(self.node_shape(shape), classes, object)]
        if name == "unstack":
            return list(np.moveaxis(operands[0], params["axis"], 0))
        keeps_classes = self.is_per_class(shape) or not any(self.is_per_class(x.aval.shape) for x in equation.invars)
        if name in MOVES and keeps_classes:
            return [MOVES[name](self.node_shape(shape), params, *operands)]
        shapes = " and ".join(str(list(x.aval.shape)) for x in equation.invars)
        raise Unsupported(f"this takes {name!r} of {shapes} numbers")

    def apply_pointwise(self, equation: Any, operands: list[np.ndarray]) -> np.ndarray:
        """Add a pointwise jaxpr equation, such as `exp`, to the graph, and return its result as an array of nodes.

        Args:
            equation: the jaxpr equation.
            operands: its operands as arrays of nodes, the symbols for values that the kernel computes.
        """
        name, params, dtype = equation.primitive.name, equation.params, compute_dtype(equation.outvars[0].aval.dtype)

        def element(*inputs: Node) -> Node:
            if name == "div" and inputs[0].per_class > inputs[1].per_class and jnp.issubdtype(dtype, jnp.floating):
                inverse = self.node("inverse", "", inputs[1:], lambda x: 1 / x, False, dtype)  # one division per row
                return self.node("mul", "", (inputs[0], inverse), jnp.multiply, True, dtype)
            return self.node(name, params, inputs, pointwise(equation), any(node.per_class for node in inputs), dtype)

        return _elementwise(element, *operands)

    def apply_reduction(self, equation: Any, operand: np.ndarray) -> np.ndarray:
        """Add a jaxpr equation that reduces axes to the graph, and return its result as an array of nodes.

        Args:
            equation: a jaxpr equation such as `reduce_sum` or `reduce_max`, over the classes or over other axes.
            operand: its operand as an array of nodes, the symbols for values that the kernel computes.
        """
        name, axes, shape = equation.primitive.name, list(equation.params["axes"]), equation.invars[0].aval.shape
        if self.is_per_class(shape) and len(shape) - 1 in axes:
            axes.remove(len(shape) - 1)
            operand = _elementwise(lambda node: self.reduce_classes(name, node), operand[..., 0])
        pair = lambda a, b: self.node(f"pair {name}", "", (a, b), PAIRWISE[name], a.per_class or b.per_class, a.dtype)
        slices = np.moveaxis(operand, axes, range(len(axes))).reshape(-1, *np.delete(operand.shape, axes))
        return np.asarray(reduce(lambda a, b: _elementwise(pair, a, b), slices), object)

    def reduce_classes(self, name: str, node: Node) -> Node:
        """Return the node (symbol for a value that the kernel computes) of a sum, maximum or minimum over the classes.

        Args:
            name: name of the reduction's primitive, such as "reduce_sum".
            node: the node that is reduced; it has a number for each class.

        Raises:
            Unsupported: the reduction is another one, or a maximum or minimum of numbers that are not floats.
        """
        if name not in REDUCTIONS or (name != "reduce_sum" and not jnp.issubdtype(node.dtype, jnp.floating)):
            raise Unsupported(f"this takes {name!r} over classes")
        if name == "reduce_sum" and node.name == "exp" and node.inputs[0].name == "sub":
            # sum exp(x - shift) need not wait for the shift, usually a maximum: saves a pass
            x, shift = node.inputs[0].inputs
            if x.per_class and not shift.per_class and shift.level > x.level:
                online_node = Node("online", (x,), None, False, x.dtype, ONLINE)
                online = self.operations.setdefault(("online", x), online_node)
                rescaled = lambda top_and_sum, shift: top_and_sum[1] * jnp.exp(top_and_sum[0] - shift)
                return self.node("scaled", "", (online, shift), rescaled, False, x.dtype)
        return self.operations.setdefault((name, node), Node(name, (node,), None, False, node.dtype, REDUCTIONS[name]))
