"""Collectives that are ambient: over the devices where each sees its own rows, the identity elsewhere.

Under `jit` a batch is one global array and a sum over it is already a sum over all devices. Under `pmap`, and inside
`shard_map` over the rows, each device sees its own. Written with these functions, a loss or a layer is the same code
for all, and no axis name is threaded through.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxdistill.core.types import Array, PyTree

PMAP_AXIS = "devices"
ROW_AXES = ("data", "fsdp")
ROWS = PartitionSpec(ROW_AXES)  # how every batch and every activation is laid out


def in_pmap() -> bool:
    """Whether the code being traced runs under the pmap backend."""
    try:
        lax.axis_index(PMAP_AXIS)
    except NameError:
        return False
    return True


def _own_rows() -> str | tuple[str, ...]:
    """The axes over which each device sees rows of its own; none where an array holds those of all."""
    if in_pmap():
        return PMAP_AXIS
    return ROW_AXES if _is_manual(jax.sharding.get_abstract_mesh()) else ()


def psum(tree: PyTree) -> PyTree:
    """Sums over the devices, where each sees its own rows; the identity elsewhere."""
    axes = _own_rows()
    return lax.psum(tree, axes) if axes else tree


def gather(tree: PyTree) -> PyTree:
    """All rows of the global batch, `[rows, ...] -> [devices * rows, ...]`; the identity where an array holds them."""
    axes = _own_rows()
    return jax.tree.map(lambda x: lax.all_gather(x, axes, tiled=True), tree) if axes else tree


def has_row_shards() -> bool:
    """Whether the rows of a batch are split over an ambient mesh, and not yet given to each device."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and set(ROW_AXES) <= set(mesh.axis_names) and not _is_manual(mesh) and not in_pmap()


def _is_manual(mesh: jax.sharding.AbstractMesh) -> bool:
    """Whether the code being traced runs on one device's own rows, inside `shard_map`."""
    return bool(set(ROW_AXES) & set(mesh.manual_axes))


def row_keys(key: Array, rows: int) -> Array:
    """One key per row of the global batch, `[rows]`, so that each device draws what one would draw."""
    axes = _own_rows()
    first = lax.axis_index(axes) * rows if axes else 0
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(first + jnp.arange(rows))


def by_rows(x: Array, tensor: int | None = None) -> Array:
    """Keeps an activation split by rows over the mesh; the identity without one, and on a device's own rows.

    Every layer of every model needs it: left to XLA's partitioner, a two-layer MLP on a (2, 2, 2) mesh had a right
    forward pass and gradients wrong by 2.0, without any error (jax 0.11.2 and 0.12).

    Args:
        x: `[rows, ...]`.
        tensor: a dimension that is split over the axis tensor too, if that divides it: the heads of attention, the
            width inside a perceptron. The kernel before it is split so by its outputs and the one behind it by its
            inputs, so that no activation is gathered (Shoeybi et al., Megatron-LM, 2019, arxiv.org/abs/1909.08053).
    """
    if not has_row_shards():
        return x
    if tensor is None or x.shape[tensor] % jax.sharding.get_abstract_mesh().shape["tensor"]:
        return lax.with_sharding_constraint(x, ROWS)
    axes: list[str | tuple[str, ...] | None] = [ROW_AXES, *[None] * (x.ndim - 1)]
    axes[tensor] = "tensor"
    return lax.with_sharding_constraint(x, PartitionSpec(*axes))
