"""Sum a function over the chunks of a batch, with value and gradient in one pass, so that no logit is computed twice.

With a vocabulary of 150,000, logits are the largest array of a run. A scan over chunks holds the logits of one chunk at
a time. To differentiate such a scan, JAX would keep the logits of all chunks or compute them a second time. Here the
scan computes the value and the gradient of a chunk together and adds both to running totals. The backward pass
multiplies the finished gradient by the incoming cotangent. This is exact because the result is one scalar: its gradient
is known up to that factor before the backward pass starts. With the heads of a student and one teacher, four products
with a kernel remain of six: two for the logits, which are not computed again, and two for the gradient of the student's
head. The cost is that the gradients exist from the forward pass on, each as large as its input.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxdistill.core.collectives import ROW_AXES, ROWS, has_row_shards
from jaxdistill.core.types import Array, PyTree

ChunkFunction = Callable[[PyTree, PyTree], tuple[Array, PyTree]]  # (shared, rows of one chunk) -> (scalar, sums)


def sum_over_chunks(function: ChunkFunction, shared: PyTree, rows: PyTree) -> tuple[Array, PyTree]:
    """Compute `sum_i function(shared, rows[i])` over chunks i, and under differentiation its gradient in the same pass.

    Only the scalar can be differentiated. Gradients are computed only for the inputs that are differentiated, so a
    frozen teacher costs none, and the gradient with respect to `shared` is summed in float32. On a mesh, every device
    scans over its own part of the batch, and the sums of all devices are added once, at the end. (XLA would add the
    gradient of a kernel over all devices in every chunk.)

    Args:
        function: `(shared, rows of one chunk) -> (scalar, tree of sums)`; must not close over values that are
            differentiated.
        shared: the arrays that all chunks read, such as kernels and parameters.
        rows: a tree of arrays `[chunks, batch, ...]` or `[chunks]`; chunk i gets the tree of `array[i]`.

    Returns:
        The sum of the scalars and the sum of the trees.
    """
    values = lambda *inputs: _on_device_rows(functools.partial(_values, function), *inputs)
    values_and_gradients = lambda wanted, *inputs: _on_device_rows(
        functools.partial(_values_and_gradients, function, wanted), *inputs
    )
    return with_one_pass_gradient(values, values_and_gradients, shared, rows)


def with_one_pass_gradient(
    values: Any, values_and_gradients: Any, shared: PyTree, rows: PyTree
) -> tuple[Array, PyTree]:
    """Compute a scalar and a tree of sums; under differentiation, get the scalar's gradient in the same forward pass.

    This is a `jax.custom_vjp`: the backward pass only multiplies the gradient by the incoming cotangent.

    Args:
        values: `(shared, rows) -> ((scalar, sums), ignored)`; called if nothing is differentiated.
        values_and_gradients: `(wanted, shared, rows) -> ((scalar, sums), gradients of the scalar)`; called under
            differentiation. `wanted` has the structure of `(shared, rows)`, with True for each leaf whose gradient is
            needed. The gradients have the same structure, with None for the other leaves.
        shared, rows: the arguments of both functions.

    Returns:
        The scalar and the sums; only the scalar can be differentiated.
    """

    @jax.custom_vjp
    def run(shared: PyTree, rows: PyTree) -> tuple[Array, PyTree]:
        return values(shared, rows)[0]

    def forward(shared: PyTree, rows: PyTree) -> tuple[Any, Any]:
        leaves, structure = jax.tree.flatten((shared, rows))
        wanted = jax.tree.unflatten(structure, [leaf.perturbed for leaf in leaves])
        return values_and_gradients(wanted, *jax.tree.unflatten(structure, [leaf.value for leaf in leaves]))

    def backward(gradients: Any, cotangents: Any) -> Any:
        cotangent = cotangents[0]  # the sums are scalars without rows
        if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
            return jax.tree.map(lambda x: None, gradients, is_leaf=_is_none)
        scaled = lambda x: None if x is None else (cotangent * x).astype(x.dtype)
        return jax.tree.map(scaled, gradients, is_leaf=_is_none)

    run.defvjp(forward, backward, symbolic_zeros=True)
    total, sums = run(shared, rows)
    return total, jax.lax.stop_gradient(sums)


def value_and_wanted_grads(function: ChunkFunction, wanted: PyTree, shared: PyTree, rows: PyTree) -> tuple[Any, Any]:
    """Compute `jax.value_and_grad(..., has_aux=True)` of a function, with respect to selected leaves of its inputs.

    Args:
        function: `(shared, rows) -> (scalar, tree of sums)`; the scalar is differentiated.
        wanted: a tree of bools with the structure of `(shared, rows)`: True for each leaf whose gradient is needed.
        shared, rows: the arguments of `function`.

    Returns:
        The results of the function, and a tree like `(shared, rows)` with the gradients; None for the other leaves.
    """
    differentiated, fixed = _split((shared, rows), wanted)
    return jax.value_and_grad(lambda x: function(*_merge(x, fixed)), has_aux=True)(differentiated)


def _is_none(x: Any) -> bool:
    return x is None


def _values(function: ChunkFunction, shared: PyTree, rows: PyTree) -> tuple[tuple[Array, PyTree], PyTree]:
    """Sum the results of a function over the chunks with a scan, and return them with None in place of gradients."""

    def body(sums: PyTree, rows: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, sums, function(shared, rows)), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, shared, _first(rows)))
    return jax.lax.scan(body, zeros, rows)[0], (None, None)


def _first(rows: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[0], rows)


def _values_and_gradients(function: ChunkFunction, wanted: PyTree, shared: PyTree, rows: PyTree) -> tuple[Any, Any]:
    """Sum the results of a function over the chunks, with a scan that computes the gradients, too.

    Gradients are summed over the chunks for `shared`, stacked for `rows`, and None for leaves that are not wanted.
    """

    def body(carry: Any, rows: Any) -> Any:
        sums, gradients = carry
        results, (of_shared, of_rows) = value_and_wanted_grads(function, wanted, shared, rows)
        gradients = jax.tree.map(lambda a, b: a + b.astype(a.dtype), gradients, of_shared)
        return (jax.tree.map(jnp.add, sums, results), gradients), of_rows

    differentiated, _ = _split(shared, wanted[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, shared, _first(rows)))
    gradients = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), differentiated)
    (sums, gradients), of_rows = jax.lax.scan(body, (zeros, gradients), rows)
    return sums, (jax.tree.map(lambda g, x: g.astype(x.dtype), gradients, differentiated), of_rows)


def _split(tree: PyTree, wanted: PyTree) -> tuple[PyTree, PyTree]:
    """Split a tree into the wanted leaves and the other leaves: two trees with None in place of missing leaves."""
    return (
        jax.tree.map(lambda x, want: x if want else None, tree, wanted),
        jax.tree.map(lambda x, want: None if want else x, tree, wanted),
    )


def _merge(a: PyTree, b: PyTree) -> PyTree:
    """Merge the two trees that `_split` returned into one tree."""
    return jax.tree.map(lambda x, y: y if x is None else x, a, b, is_leaf=_is_none)


def _on_device_rows(function: Callable[[PyTree, PyTree], Any], shared: PyTree, rows: PyTree) -> Any:
    """Run a function on the rows of each device with `shard_map`, and sum its results over the devices.

    Without a mesh, or inside a `shard_map` over the rows, the function is called directly.

    Args:
        function: `(shared, rows) -> (results, (gradients of shared, gradients of rows))`. The gradients of `rows` are
            not summed, because each belongs to one device.
        shared: arrays that every device gets.
        rows: a tree of arrays `[chunks, batch, ...]`, split along `batch`, or `[chunks]`.
    """
    if not has_row_shards():
        return function(shared, rows)

    def per_device(shared: PyTree, rows: PyTree) -> Any:
        sums, (of_shared, of_rows) = function(shared, rows)
        return jax.lax.psum(sums, ROW_AXES), (jax.lax.psum(of_shared, ROW_AXES), of_rows)

    replicated, by_rows = PartitionSpec(), PartitionSpec(None, *ROWS)
    layout = jax.tree.map(lambda x: by_rows if x.ndim > 1 else replicated, rows)  # the numbers of chunks have no rows
    in_specs, out_specs = (replicated, layout), (replicated, (replicated, by_rows))
    mapped = jax.shard_map(
        per_device, in_specs=in_specs, out_specs=out_specs, axis_names=set(ROW_AXES), check_vma=False
    )
    return mapped(shared, rows)
