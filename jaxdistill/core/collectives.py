"""Collective operations that need no axis name: sums and gathers over devices, or the identity without devices.

Under `jit` a batch is one global array, and a sum over it is already a sum over all devices. Under `pmap`, and inside
`shard_map` over the rows, each device has only its own rows. With these functions a loss or a layer has the same code
in all three cases.
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
    """Return True while code is traced for the pmap backend."""
    try:
        lax.axis_index(PMAP_AXIS)
    except NameError:
        return False
    return True


def _per_device_axes() -> str | tuple[str, ...]:
    """Return the axes over which each device has different rows; empty where an array holds the rows of all."""
    if in_pmap():
        return PMAP_AXIS
    return ROW_AXES if _is_manual(jax.sharding.get_abstract_mesh()) else ()


def psum(tree: PyTree) -> PyTree:
    """Sum over the devices where each has its own rows; the identity elsewhere."""
    axes = _per_device_axes()
    return lax.psum(tree, axes) if axes else tree


def gather(tree: PyTree) -> PyTree:
    """Gather all rows of the global batch, `[rows, ...] -> [devices * rows, ...]`; the identity on global arrays."""
    axes = _per_device_axes()
    return jax.tree.map(lambda x: lax.all_gather(x, axes, tiled=True), tree) if axes else tree


def has_row_shards() -> bool:
    """Return True if the ambient mesh splits the rows of a batch and arrays are still global (no `shard_map`)."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and set(ROW_AXES) <= set(mesh.axis_names) and not _is_manual(mesh) and not in_pmap()


def _is_manual(mesh: jax.sharding.AbstractMesh) -> bool:
    """Return True inside `shard_map` over the rows, where code runs on one device's rows."""
    return bool(set(ROW_AXES) & set(mesh.manual_axes))


def row_keys(key: Array, rows: int) -> Array:
    """Return one key per row, `[rows]`, derived from the row's global number: any number of devices draws the same."""
    axes = _per_device_axes()
    first = lax.axis_index(axes) * rows if axes else 0
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(first + jnp.arange(rows))


def by_rows(x: Array, tensor: int | None = None) -> Array:
    """Constrain an activation to be split by rows over the mesh; the identity without a mesh or on one device's rows.

    Every layer of every model needs this: without the constraint, XLA's partitioner gave a two-layer MLP on a
    (2, 2, 2) mesh a correct forward pass and gradients wrong by 2.0, without any error (jax 0.11.2 and 0.12).

    Args:
        x: `[rows, ...]`.
        tensor: a dimension that is also split over the axis tensor, if that axis divides it: the heads of attention,
            or the hidden width of an MLP. The kernel before it is split by its outputs and the kernel after it by its
            inputs, so that no activation is gathered (Shoeybi et al., Megatron-LM, 2019, arxiv.org/abs/1909.08053).
    """
    if not has_row_shards():
        return x
    if tensor is None or x.shape[tensor] % jax.sharding.get_abstract_mesh().shape["tensor"]:
        return lax.with_sharding_constraint(x, ROWS)
    axes: list[str | tuple[str, ...] | None] = [ROW_AXES, *[None] * (x.ndim - 1)]
    axes[tensor] = "tensor"
    return lax.with_sharding_constraint(x, PartitionSpec(*axes))
