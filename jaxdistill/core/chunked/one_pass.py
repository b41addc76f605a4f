"""Sums over the pieces of a batch whose value and gradient are taken in one pass, so that nothing is formed twice.

A vocabulary of 150,000 makes logits the largest array of a run. Piece by piece only one piece of them exists; and where
the gradient is taken while the value is, they are not formed again for it: of six products with a kernel four are left.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxdistill.core.collectives import ROW_AXES, ROWS, has_row_shards
from jaxdistill.core.types import Array, PyTree

Piece = Callable[[PyTree, PyTree], tuple[Array, PyTree]]


def streamed(piece: Piece, shared: PyTree, rows: PyTree) -> tuple[Array, PyTree]:
    """The sums over all pieces of what `piece(shared, rows[i])` returns; the first of the two has a gradient.

    The gradient is taken in what is differentiated and nothing else: a frozen teacher costs none. Those of `shared` are
    added up in float32. On a mesh every device goes over its own rows, and devices are summed once, at the end: left to
    the partitioner, a kernel's gradient is summed over all of them in every piece.

    Args:
        piece: `(shared, rows) -> (scalar, tree of sums)`; it may close over nothing that is differentiated.
        shared: what all pieces read, such as kernels and parameters.
        rows: `[pieces, batch, ...]` for each array, or `[pieces]`.
    """
    values = lambda *given: _on_own_rows(functools.partial(_values, piece), *given)
    both = lambda wanted, *given: _on_own_rows(functools.partial(_values_and_gradients, piece, wanted), *given)
    return in_one_pass(values, both, shared, rows)


def in_one_pass(values: Any, both: Any, shared: PyTree, rows: PyTree) -> tuple[Array, PyTree]:
    """A scalar and a tree of sums, the gradient of the scalar being taken with its value.

    Args:
        values: `(shared, rows) -> ((scalar, sums), anything)`
        both: `(wanted, shared, rows) -> ((scalar, sums), gradients of (shared, rows))`, None for a leaf that is not
            wanted
        shared, rows: their arguments.
    """

    @jax.custom_vjp
    def run(shared: PyTree, rows: PyTree) -> tuple[Array, PyTree]:
        return values(shared, rows)[0]

    def forward(shared: PyTree, rows: PyTree) -> tuple[Any, Any]:
        leaves, structure = jax.tree.flatten((shared, rows))
        wanted = jax.tree.unflatten(structure, [leaf.perturbed for leaf in leaves])
        return both(wanted, *jax.tree.unflatten(structure, [leaf.value for leaf in leaves]))

    def backward(gradients: Any, cotangents: Any) -> Any:
        slope = cotangents[0]  # of the sums there is none
        if isinstance(slope, jax.custom_derivatives.SymbolicZero):
            return jax.tree.map(lambda x: None, gradients, is_leaf=_is_none)
        return jax.tree.map(lambda x: None if x is None else (slope * x).astype(x.dtype), gradients, is_leaf=_is_none)

    run.defvjp(forward, backward, symbolic_zeros=True)
    total, sums = run(shared, rows)
    return total, jax.lax.stop_gradient(sums)


def taken(piece: Piece, wanted: PyTree, shared: PyTree, rows: PyTree) -> tuple[Any, Any]:
    """The sums of one piece, and the gradients of the first: of (shared, rows), None where it is not wanted."""
    learned, fixed = _split((shared, rows), wanted)
    return jax.value_and_grad(lambda learned: piece(*_joined(learned, fixed)), has_aux=True)(learned)


def _is_none(x: Any) -> bool:
    return x is None


def _values(piece: Piece, shared: PyTree, rows: PyTree) -> tuple[tuple[Array, PyTree], PyTree]:
    def body(sums: PyTree, rows: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, sums, piece(shared, rows)), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(piece, shared, _first(rows)))
    return jax.lax.scan(body, zeros, rows)[0], (None, None)


def _first(rows: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[0], rows)


def _values_and_gradients(piece: Piece, wanted: PyTree, shared: PyTree, rows: PyTree) -> tuple[Any, Any]:
    """The sums, and the gradients of the first one: of `shared`, of `rows`; None where it is not differentiated."""

    def body(carry: Any, rows: Any) -> Any:
        sums, slopes = carry
        found, gradient = taken(piece, wanted, shared, rows)
        slopes = jax.tree.map(lambda a, b: a + b.astype(a.dtype), slopes, gradient[0])
        return (jax.tree.map(jnp.add, sums, found), slopes), gradient[1]

    learned, _ = _split(shared, wanted[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(piece, shared, _first(rows)))
    slopes = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), learned)
    (sums, slopes), of_rows = jax.lax.scan(body, (zeros, slopes), rows)
    return sums, (jax.tree.map(lambda g, x: g.astype(x.dtype), slopes, learned), of_rows)


def _split(tree: PyTree, wanted: PyTree) -> tuple[PyTree, PyTree]:
    """The leaves that are wanted and the others, each in the tree's structure with None where the other has a leaf."""
    return (
        jax.tree.map(lambda x, want: x if want else None, tree, wanted),
        jax.tree.map(lambda x, want: None if want else x, tree, wanted),
    )


def _joined(one: PyTree, other: PyTree) -> PyTree:
    """Inverse of `_split`."""
    return jax.tree.map(lambda a, b: b if a is None else a, one, other, is_leaf=_is_none)


def _on_own_rows(function: Callable[[PyTree, PyTree], Any], shared: PyTree, rows: PyTree) -> Any:
    """`((total, sums), (gradients of shared, of rows))`, by every device from its own rows, summed over the devices."""
    if not has_row_shards():
        return function(shared, rows)

    def own(shared: PyTree, rows: PyTree) -> Any:
        sums, (of_shared, of_rows) = function(shared, rows)
        return jax.lax.psum(sums, ROW_AXES), (jax.lax.psum(of_shared, ROW_AXES), of_rows)

    whole, by_rows = PartitionSpec(), PartitionSpec(None, *ROWS)
    split = jax.tree.map(lambda x: by_rows if x.ndim > 1 else whole, rows)  # a piece's number has no rows
    given, found = (whole, split), (whole, (whole, by_rows))
    return jax.shard_map(own, in_specs=given, out_specs=found, axis_names=set(ROW_AXES), check_vma=False)(shared, rows)
