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
    """Return the sizes of the mesh axes `(data, fsdp, tensor)`; the size -1 is resolved from the number of devices.

    Args:
        data, fsdp, tensor: sizes of the axes; at most one is -1, which means all remaining devices.
        devices: number of available devices.

    Raises:
        ValueError: more than one size is -1, a size is 0 or less, the mesh needs more devices than there are, or the
            product of the sizes does not divide the number of devices (if one size is -1).
    """
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(
            "sizes are positive, and at most one is -1 (all remaining devices); "
            f"got {dict(zip(AXES, sizes, strict=True))}"
        )
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        if devices % fixed:
            raise ValueError(
                f"{devices} devices are not divisible by {fixed}; choose sizes whose product divides {devices}"
            )
        sizes[sizes.index(-1)] = devices // fixed
    elif fixed > devices:
        cure = "lower a size, or set one to -1 (a CPU has 8 by XLA_FLAGS=--xla_force_host_platform_device_count=8)"
        raise ValueError(f"the mesh needs {fixed} devices, there are {devices}; {cure}")
    return sizes[0], sizes[1], sizes[2]


def make_mesh(shape: tuple[int, int, int], devices: Sequence[jax.Device] = ()) -> Mesh:
    """Build a device mesh with the axes `data`, `fsdp` and `tensor`, all of the axis type Auto.

    (`jax.make_mesh` defaults to the type Explicit.)

    On TPUs, neighbours on the mesh are neighbouring chips, and a mesh axis may take a part of a physical axis. If there
    are several TPU slices, the axis `data` is split over them first, then `fsdp`, and never `tensor`, as the network
    between slices is slow.

    Args:
        shape: sizes of the axes `data`, `fsdp` and `tensor`.
        devices: the available devices, of which the mesh takes the first ones; if empty, all devices of this system.

    Raises:
        ValueError: `data` and `fsdp` cannot be split over the TPU slices, or the TPU chips do not form a box.
    """
    selected = list(devices or jax.devices())[: math.prod(shape)]
    if selected[0].platform != "tpu":
        placed = np.asarray(selected, dtype=object).reshape(shape)
    elif (slices := len({getattr(device, "slice_index", 0) for device in selected})) > 1:
        data, fsdp, tensor = shape
        data_slices = math.gcd(data, slices)
        fsdp_slices = slices // data_slices
        if fsdp % fsdp_slices:
            raise ValueError(f"data {data} x fsdp {fsdp} does not divide into {slices} slices; change one of them")
        within, between = (data // data_slices, fsdp // fsdp_slices, tensor), (data_slices, fsdp_slices, 1)
        placed = create_hybrid_device_mesh(within, between, selected, allow_split_physical_axes=True)
    else:
        try:
            placed = create_device_mesh(shape, selected, allow_split_physical_axes=True)
        except AssertionError:  # JAX assumes that the chips are a box, and finds holes
            cure = "choose sizes that leave a box, such as half of the chips"
            raise ValueError(f"{len(selected)} chips are no box of neighbours; {cure}") from None
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * 3)


def row_shard_count(mesh: Mesh) -> int:
    """Return the number of shards into which a mesh splits the rows of a batch: size of `data` times size of `fsdp`."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def build_mesh(shape: tuple[int, int, int], devices: Sequence[jax.Device] = ()) -> Mesh:
    """Build a device mesh like `make_mesh`, but report an error as a `ConfigError` of the config key `mesh`.

    Args:
        shape: sizes of the axes `data`, `fsdp` and `tensor`.
        devices: the available devices, of which the mesh takes the first ones; if empty, all devices of this system.

    Raises:
        ConfigError: the axes cannot be laid out on this machine.
    """
    try:
        return make_mesh(shape, devices)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError("mesh", f"{' '.join(str(error).split())[:300]}.") from None
