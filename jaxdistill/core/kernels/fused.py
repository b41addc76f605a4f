"""Sum losses over rows of logits with one Pallas kernel on a TPU: value and gradient, each logit read once.

A row is a token (or example) with its logits. `function(shared, row)` is the loss of one row, written in plain JAX;
`shared` are the arrays that all rows need. JAX differentiates the function for one row, `trace.py` turns value and
gradient into a graph of nodes, and `launch.py` runs the graph for all rows. For each row, the kernel returns what the
row adds to the sums and to the gradient with respect to `shared`, and the gradient with respect to the row. XLA then
sums over the rows. This is right because what a row adds depends on that row alone: the gradient of the sum with
respect to one row is the gradient of what that row adds.

Blocks of whole rows stay in VMEM (16 rows of 151,936 classes are 4.6 MiB) for as many passes as the function takes:
both logits are read once and the gradient is written. The products with the heads are left to XLA: the memory traffic
of a product is hidden behind its arithmetic. A kernel that computed the products too would compute the logits a second
time for their gradient, which takes longer than to read 6 bytes.

Bytes moved between the products for a logit of the student and one of its teacher, in bfloat16, with the gradient
(`python -m experiments.benchmarks.moved`; XLA's are those of its own programs for these chips):

                          XLA on v5e     v5p     v6e     H100     the kernel, on TPUs
    forward KL                    26      18      24       26                       6
    five terms, summed            40      32      38      110                       6
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.core.chunked.one_pass import ChunkFunction, value_and_wanted_grads, with_one_pass_gradient
from jaxdistill.core.kernels.launch import Operand, Output, launch_kernel
from jaxdistill.core.kernels.trace import Graph, is_node_array
from jaxdistill.core.types import Array, PyTree


def sum_over_rows(function: ChunkFunction, classes: int, shared: PyTree, rows: PyTree) -> tuple[Array, PyTree]:
    """Compute `function(shared, rows)`, a sum over rows (tokens with their logits), with one Pallas kernel.

    Under differentiation, one kernel computes both value and gradient.

    Args:
        function: `(shared, rows) -> (scalar, tree of sums)`. Every result is a sum over rows of what depends on one row
            (and `shared`) alone. Only the scalar can be differentiated.
        classes: the number of classes; an array whose last dimension has this size has one value per class.
        shared: the arrays that all rows need, such as weights and params of loss terms.
        rows: a tree of arrays `[1, rows, ...]`.

    Raises:
        Unsupported: the function does more than pointwise operations and reductions over the classes, or a block of
            8 rows does not fit the memory of a TPU core (VMEM).
    """

    def values(shared: PyTree, row: PyTree) -> Any:
        return function(shared, row), ()

    def values_and_gradients_of_row(wanted: PyTree, shared: PyTree, row: PyTree) -> Any:
        results, (of_shared, of_row) = value_and_wanted_grads(function, wanted, shared, row)
        return (results, of_shared), of_row

    def values_and_gradients(wanted: PyTree, shared: PyTree, rows: PyTree) -> Any:
        of_row = functools.partial(values_and_gradients_of_row, wanted)
        (results, of_shared), of_rows = _map_rows(of_row, classes, shared, rows)
        return results, (of_shared, of_rows)

    return with_one_pass_gradient(functools.partial(_map_rows, values, classes), values_and_gradients, shared, rows)


def _map_rows(function: Callable[..., Any], classes: int, shared: PyTree, rows: PyTree) -> Any:
    """Run `function(shared, row) -> (tree, tree)` for all rows with one kernel.

    The arrays of the first tree are summed over the rows; those of the second are returned for every row.
    """
    shared_leaves, arrays = jax.tree.leaves(shared), jax.tree.leaves(rows)
    trees: list[Any] = []

    def on_leaves(*leaves: Any) -> list[Any]:
        results = function(*jax.tree.unflatten(jax.tree.structure((shared, rows)), leaves))
        trees[:] = [jax.tree.structure(tree) for tree in results]
        return jax.tree.leaves(results)

    graph, count = Graph(classes), arrays[0].shape[1]
    one_row = [jax.ShapeDtypeStruct((1, 1, *x.shape[2:]), x.dtype) for x in arrays]
    arguments, results, kinds = graph.trace(on_leaves, shared_leaves, one_row)
    operands = [Operand(arrays[i].reshape(count, -1), tuple(nodes.flat)) for i, nodes in arguments.items()]
    operands += [Operand(number.reshape(1, 1), (node,)) for node, number, _ in graph.shared.values()]
    computed = [(nodes, kind) for nodes, kind in zip(results, kinds, strict=True) if is_node_array(nodes)]
    outputs = [Output(x, graph.is_per_class(kind.shape), kind.dtype) for nodes, kind in computed for x in nodes.flat]
    columns = iter(launch_kernel(operands, outputs, count, classes))
    split = trees[0].num_leaves
    sums = [_sum(x, kind, columns, count) for x, kind in zip(results[:split], kinds[:split], strict=True)]
    per_row = [_per_row(x, kind, columns, count) for x, kind in zip(results[split:], kinds[split:], strict=True)]
    return trees[0].unflatten(sums), trees[1].unflatten(per_row)


def _sum(result: Any, kind: Any, columns: Iterator[Array], count: int) -> Array:
    """Sum one result of the kernel over all rows, and return an array of the shape in `kind`.

    Args:
        result: an array of nodes; or an array of numbers, which are the same for every row.
        kind: shape and dtype of the result.
        columns: outputs of the kernel, one for each node, consumed in order.
        count: the number of rows.
    """
    if not is_node_array(result):
        return result * jnp.asarray(count, kind.dtype)
    return jnp.stack([jnp.sum(next(columns)) for _ in result.flat]).reshape(kind.shape)


def _per_row(result: Any, kind: Any, columns: Iterator[Array], count: int) -> Array:
    """Return one result of the kernel for every row, `[1, rows, ...]`; the arguments are those of `_sum`."""
    if not is_node_array(result):
        return jnp.broadcast_to(result, (1, count, *kind.shape[2:]))
    return jnp.concatenate([next(columns) for _ in result.flat], axis=-1).reshape(1, count, *kind.shape[2:])
