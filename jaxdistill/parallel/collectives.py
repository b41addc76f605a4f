"""Collectives that are ambient: `pmap`'s axis where there is one, the identity elsewhere.

Under `jit` a batch is one global array and a sum over it is already a sum over all devices. Under `pmap` each device
sees its own rows. Written with these functions, a loss or a layer is the same code for both, and no axis name is
threaded through.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxdistill.types import Array, PyTree

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


def psum(tree: PyTree) -> PyTree:
    """Sums over devices under pmap; the identity elsewhere."""
    return lax.psum(tree, PMAP_AXIS) if in_pmap() else tree


def gather(tree: PyTree) -> PyTree:
    """All rows of the global batch, `[rows, ...] -> [devices * rows, ...]` under pmap; the identity elsewhere."""
    return jax.tree.map(lambda x: lax.all_gather(x, PMAP_AXIS, tiled=True), tree) if in_pmap() else tree


def has_row_shards() -> bool:
    """Whether the rows of a batch are split over an ambient mesh, and not yet given to each device."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and set(ROW_AXES) <= set(mesh.axis_names) and not _is_manual(mesh) and not in_pmap()


def _is_manual(mesh: jax.sharding.AbstractMesh) -> bool:
    """Whether the code being traced runs on one device's own rows, inside `shard_map`."""
    return bool(set(ROW_AXES) & set(mesh.manual_axes))


def row_keys(key: Array, rows: int) -> Array:
    """One key per row of the global batch, `[rows]`, so that pmap draws what jit draws."""
    axes = PMAP_AXIS if in_pmap() else ROW_AXES if _is_manual(jax.sharding.get_abstract_mesh()) else ()
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
