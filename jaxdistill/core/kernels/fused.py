"""Sum losses over rows of logits with one Pallas kernel on a TPU: value and gradient, each logit read once.

Bytes moved between the products for a logit of the student and one of its teacher, in bfloat16, with the gradient
(`python -m experiments.benchmarks.moved`; XLA's are those of its own programs for these chips):

                          XLA on v5e     v5p     v6e     H100     the kernel, on TPUs
    forward KL                    26      18      24       26                       6
    five terms, summed            40      32      38      110                       6

Blocks of whole rows stay in VMEM (16 rows of 151,936 classes are 4.6 MiB) for as many passes as the function takes:
both logits are read once and the gradient is written. Products are left to the compiler: what they move hides behind
them, and a kernel that formed them too would form the logits a second time for their gradient, which takes longer than
reading 6 bytes.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.core.chunked.one_pass import Piece, in_one_pass, taken
from jaxdistill.core.kernels.launch import Operand, Output, call
from jaxdistill.core.kernels.trace import Graph, is_nodes
from jaxdistill.core.types import Array, PyTree


def summed(piece: Piece, classes: int, shared: PyTree, rows: PyTree) -> tuple[Array, PyTree]:
    """`piece(shared, rows)`, a sum over rows, by a kernel; the first of its two results has a gradient.

    Args:
        piece: `(shared, rows) -> (scalar, tree of sums)`; what a row adds depends on that row alone.
        classes: arrays of rows whose last dimension is as large are logits.
        shared: what all rows read.
        rows: `[1, rows, ...]` for each array.

    Raises:
        Unsupported: it is more than pointwise operations and folds over the classes, or its rows do not fit.
    """

    def values(shared: PyTree, row: PyTree) -> Any:
        return piece(shared, row), ()

    def slopes(wanted: PyTree, shared: PyTree, row: PyTree) -> Any:
        found, (of_shared, of_row) = taken(piece, wanted, shared, row)
        return (found, of_shared), of_row

    def both(wanted: PyTree, shared: PyTree, rows: PyTree) -> Any:
        (found, of_shared), of_rows = _over_rows(functools.partial(slopes, wanted), classes, shared, rows)
        return found, (of_shared, of_rows)

    return in_one_pass(functools.partial(_over_rows, values, classes), both, shared, rows)


def _over_rows(function: Callable[..., Any], classes: int, shared: PyTree, rows: PyTree) -> Any:
    """Of `function(shared, row) -> (one, other)` for all rows: the first tree summed over them, the second of each."""
    common, arrays = jax.tree.leaves(shared), jax.tree.leaves(rows)
    trees: list[Any] = []

    def flat(*given: Any) -> list[Any]:
        found = function(*jax.tree.unflatten(jax.tree.structure((shared, rows)), given))
        trees[:] = [jax.tree.structure(tree) for tree in found]
        return jax.tree.leaves(found)

    graph, count = Graph(classes), arrays[0].shape[1]
    like = [jax.ShapeDtypeStruct((1, 1, *x.shape[2:]), x.dtype) for x in arrays]
    given, found, kinds = graph.read(flat, common, like)
    operands = [Operand(arrays[i].reshape(count, -1), tuple(nodes.flat)) for i, nodes in given.items()]
    operands += [Operand(number.reshape(1, 1), (node,)) for node, number, _ in graph.common.values()]
    pairs = [(value, kind) for value, kind in zip(found, kinds, strict=True) if is_nodes(value)]
    outputs = [Output(node, graph.is_wide(kind.shape), kind.dtype) for nodes, kind in pairs for node in nodes.flat]
    columns = iter(call(operands, outputs, count, classes))
    number = trees[0].num_leaves
    one = [_summed(value, kind, columns, count) for value, kind in zip(found[:number], kinds[:number], strict=True)]
    other = [_of_each(value, kind, columns, count) for value, kind in zip(found[number:], kinds[number:], strict=True)]
    return trees[0].unflatten(one), trees[1].unflatten(other)


def _summed(value: Any, kind: Any, columns: Iterator[Array], count: int) -> Array:
    """A result summed over all rows, some of which are the same for each."""
    if not is_nodes(value):
        return value * jnp.asarray(count, kind.dtype)
    return jnp.stack([jnp.sum(next(columns)) for _ in value.flat]).reshape(kind.shape)


def _of_each(value: Any, kind: Any, columns: Iterator[Array], count: int) -> Array:
    """A result of every row, `[1, rows, ...]`."""
    if not is_nodes(value):
        return jnp.broadcast_to(value, (1, count, *kind.shape[2:]))
    return jnp.concatenate([next(columns) for _ in value.flat], axis=-1).reshape(1, count, *kind.shape[2:])
