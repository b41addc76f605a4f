"""The device mesh: axes `data` and `fsdp` split the rows of a batch, `fsdp` and `tensor` split the parameters."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh

from jaxdistill.core.errors import ConfigError

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
        cure = "lower a size, or set one to -1 (a CPU is many by XLA_FLAGS=--xla_force_host_platform_device_count=8)"
        raise ValueError(f"the mesh needs {fixed} devices, there are {devices}; {cure}")
    return sizes[0], sizes[1], sizes[2]


def make_mesh(shape: tuple[int, int, int], devices: Sequence[jax.Device] = ()) -> Mesh:
    """A mesh over the first devices (empty: of this system); its axes are Auto (`jax.make_mesh` defaults to Explicit).

    On TPUs, neighbours on the mesh are neighbours in the machine, and an axis may go along a part of one of its own.
    Between slices, where the network is slow, goes data, then fsdp, and never tensor.

    Raises:
        ValueError: slices that do not divide data x fsdp, or chips of a TPU that are no box of neighbours.
    """
    found = list(devices or jax.devices())[: math.prod(shape)]
    if found[0].platform != "tpu":
        placed = np.asarray(found, dtype=object).reshape(shape)
    elif (slices := len({getattr(device, "slice_index", 0) for device in found})) > 1:
        data, fsdp, tensor = shape
        outer = math.gcd(data, slices)
        if fsdp % (slices // outer):
            raise ValueError(f"data {data} x fsdp {fsdp} does not divide into {slices} slices; change one of them")
        further = slices // outer
        inside, between = (data // outer, fsdp // further, tensor), (outer, further, 1)
        placed = create_hybrid_device_mesh(inside, between, found, allow_split_physical_axes=True)
    else:
        try:
            placed = create_device_mesh(shape, found, allow_split_physical_axes=True)
        except AssertionError:  # of JAX, about the holes in what it takes for a box
            cure = "choose sizes that leave a box, such as half of the chips"
            raise ValueError(f"{len(found)} chips are no box of neighbours; {cure}") from None
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * 3)


def row_shards(mesh: Mesh) -> int:
    """Into how many pieces the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def build_mesh(shape: tuple[int, int, int], devices: Sequence[jax.Device] = ()) -> Mesh:
    """The mesh of a shape, over the first devices (empty: of this system).

    Raises:
        ConfigError: its axes cannot be laid out on the machine's own.
    """
    try:
        return make_mesh(shape, devices)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError("mesh", f"{' '.join(str(error).split())[:300]}.") from None
