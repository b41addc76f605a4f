"""Sums and gathers over devices that work alike under `jit`, `pmap` and `shard_map`, without an axis name.

Under `jit` a batch is one global array, and a sum over it is already a sum over all devices; the functions then return
their argument. Under `pmap`, and inside a `shard_map` over the rows (examples) of the batch, each device has only its
own rows. With these functions a loss or a layer has the same code in all three cases.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxdistill.core.types import Array, PyTree

PMAP_AXIS = "devices"
ROW_AXES = ("data", "fsdp")
ROWS = PartitionSpec(ROW_AXES)  # the layout of every batch and every activation


def in_pmap() -> bool:
    """Return True while JAX traces code inside the pmap backend's `pmap`, where a device has only its own examples."""
    try:
        lax.axis_index(PMAP_AXIS)
    except NameError:
        return False
    return True


def _per_device_axes() -> str | tuple[str, ...]:
    """Return the names of the mapped axes over which the rows of a batch are split; empty under plain `jit`."""
    if in_pmap():
        return PMAP_AXIS
    return ROW_AXES if _is_manual(jax.sharding.get_abstract_mesh()) else ()


def psum(tree: PyTree) -> PyTree:
    """Sum each array over the devices under `pmap` or `shard_map`; under plain `jit`, return the tree unchanged.

    Under `jit`, arrays are global, so sums over a batch are sums over all devices already.
    """
    axes = _per_device_axes()
    return lax.psum(tree, axes) if axes else tree


def gather(tree: PyTree) -> PyTree:
    """Concatenate each array over the devices under `pmap` or `shard_map`: `[rows, ...] -> [devices * rows, ...]`.

    Under plain `jit`, arrays are global and are returned unchanged.
    """
    axes = _per_device_axes()
    return jax.tree.map(lambda x: lax.all_gather(x, axes, tiled=True), tree) if axes else tree


def has_row_shards() -> bool:
    """Return True if JAX's ambient mesh shards the batch, outside `shard_map` and `pmap`, so that arrays are global."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and set(ROW_AXES) <= set(mesh.axis_names) and not _is_manual(mesh) and not in_pmap()


def _is_manual(mesh: jax.sharding.AbstractMesh) -> bool:
    """Return True inside `shard_map` over the rows, where code runs on one device's rows."""
    return bool(set(ROW_AXES) & set(mesh.manual_axes))


def row_keys(key: Array, rows: int) -> Array:
    """Derive a PRNG key for each example of the batch, `fold_in(key, index of the example in the global batch)`.

    Random draws with these keys do not depend on the number of devices.

    Args:
        key: the key to derive from.
        rows: number of examples that the arrays of the caller hold: those of one device under `pmap` or `shard_map`,
            otherwise those of all devices.

    Returns:
        `[rows]`, the keys.
    """
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(row_numbers(rows))


def row_numbers(rows: int) -> Array:
    """Return the index in the global batch of each example that the caller's arrays hold, `[rows]`.

    Args:
        rows: number of examples in these arrays: those of one device under `pmap` or `shard_map`, otherwise those of
            all devices.
    """
    axes = _per_device_axes()
    first = lax.axis_index(axes) * rows if axes else 0
    return first + jnp.arange(rows)


def by_rows(x: Array, tensor: int | None = None) -> Array:
    """Constrain an activation's sharding: the first dimension, the batch, is split over the mesh axes data and fsdp.

    Without a mesh, and inside `pmap` or `shard_map`, the activation is returned unchanged.

    Every layer of every model must call this. Without the constraint, XLA's partitioner gave a two-layer MLP on a
    (2, 2, 2) mesh a correct forward pass and gradients wrong by 2.0, without any error (jax 0.11.2 and 0.12).

    Args:
        x: `[batch, ...]`, an activation.
        tensor: index of a dimension that is also split over the mesh axis tensor, if the size of the axis divides it:
            attention heads, or the hidden width of an MLP. The kernel before the activation is split by its outputs and
            the kernel after it by its inputs, so that no activation is gathered (Shoeybi et al., Megatron-LM, 2019,
            arxiv.org/abs/1909.08053).
    """
    if not has_row_shards():
        return x
    if tensor is None or x.shape[tensor] % jax.sharding.get_abstract_mesh().shape["tensor"]:
        return lax.with_sharding_constraint(x, ROWS)
    axes: list[str | tuple[str, ...] | None] = [ROW_AXES, *[None] * (x.ndim - 1)]
    axes[tensor] = "tensor"
    return lax.with_sharding_constraint(x, PartitionSpec(*axes))
