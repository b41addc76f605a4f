"""The device mesh: axes `data` and `fsdp` split the rows of a batch, `fsdp` and `tensor` split the parameters."""

import math

import jax
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "tensor")


def mesh_shape(data: int, fsdp: int, tensor: int, devices: int) -> tuple[int, int, int]:
    """The mesh's shape; at most one size may be -1, for all devices that the others leave.

    Raises:
        ValueError: if it needs more devices than there are, or does not come out whole.
    """
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(
            f"sizes are positive, and at most one is -1 (all that are left); got {dict(zip(AXES, sizes, strict=True))}"
        )
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        if devices % fixed:
            raise ValueError(
                f"{devices} devices do not divide by {fixed}; choose sizes whose product divides {devices}"
            )
        sizes[sizes.index(-1)] = devices // fixed
    elif fixed > devices:
        raise ValueError(f"the mesh needs {fixed} devices, there are {devices}; lower a size, or set one to -1")
    return sizes[0], sizes[1], sizes[2]


def make_mesh(shape: tuple[int, int, int]) -> Mesh:
    """A mesh over the first devices; its axes are Auto (`jax.make_mesh` defaults to Explicit)."""
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[: math.prod(shape)])


def row_shards(mesh: Mesh) -> int:
    """Into how many pieces the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
