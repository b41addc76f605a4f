"""The devices that a config asks for: the student's mesh and those of teachers apart, by which batches divide."""

from collections.abc import Mapping, Sequence

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxdistill import registry
from jaxdistill.errors import ConfigError
from jaxdistill.models.cached import Submesh
from jaxdistill.parallel.mesh import make_mesh, mesh_shape


def mesh(shape: tuple[int, int, int], devices: Sequence[jax.Device] = ()) -> Mesh:
    """The mesh of a shape, over the first devices (empty: of this system).

    Raises:
        ConfigError: its axes cannot be laid out on the machine's own.
    """
    try:
        return make_mesh(shape, devices)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError("mesh", f"{' '.join(str(error).split())[:300]}.") from None


def submeshes(config: ConfigDict) -> dict[str, Submesh]:
    """The devices that teachers have for themselves, by name."""
    said = {name: entry.apart for name, entry in config.teachers.items() if entry.apart}
    return {name: registry.placements.build(spec, f"teachers.{name}.apart") for name, spec in said.items()}


def check_mesh(config: ConfigDict, devices: int) -> tuple[int, int, int]:
    """The mesh's shape, for a number of devices, of which teachers may have some for themselves.

    Raises:
        ConfigError: if they need more devices than there are, or the batch does not divide by them.
    """
    mesh, left = config.mesh, _left(config, devices)
    try:
        shape = mesh_shape(mesh.data, mesh.fsdp, mesh.tensor, left)
    except ValueError as error:
        taken = f" ({devices - left} of {devices} are teachers' own)" if left < devices else ""
        raise ConfigError("mesh", f"{error}{taken}.") from None
    if mesh.backend == "pmap" and (shape[1:] != (1, 1) or jax.process_count() > 1):
        raise ConfigError(
            "mesh", "the pmap backend splits rows only, in one process; set fsdp=1 and tensor=1, or backend='jit'."
        )
    if config.kernels != "xla" and shape[2] > 1:
        cure = "Split rows instead, by data and fsdp, or set kernels='xla'"
        why = f"{shape[2]} splits the rows of logits that kernels='pallas' reads whole"
        raise ConfigError("mesh.tensor", f"{why}. {cure}.")
    pieces, split = shape[0] * shape[1], f"data {shape[0]} x fsdp {shape[1]}, accumulate {config.accumulate}"
    learned = {f"streams.{n}.batch_size": s.batch_size or config.batch_size for n, s in config.streams.items()}
    learned, judged = {"batch_size": config.batch_size, **learned}, {"evaluate.batch_size": config.evaluate.batch_size}
    _check_rows(learned, pieces * config.accumulate, split)
    _check_rows(judged, pieces, split)
    for name, own in submeshes(config).items():
        _check_rows(learned | judged, own.devices, f"teachers.{name}.apart")
    return shape


def check_kernels(config: ConfigDict, mesh: Mesh) -> None:
    """Kernels have a compiler for the devices.

    Raises:
        ConfigError: there is none.
    """
    platform = mesh.devices.flat[0].platform
    if config.kernels != "xla" and platform not in ("tpu", "gpu", "cuda"):
        why = f"{config.kernels!r} is compiled for TPUs and NVIDIA GPUs, and these devices are of platform {platform!r}"
        raise ConfigError("kernels", f"{why}. Set kernels='xla'.")


def _left(config: ConfigDict, devices: int) -> int:
    """How many devices the student has, beside teachers with devices of their own."""
    left = devices
    for name, own in submeshes(config).items():
        path, left = f"teachers.{name}.apart", left - own.devices
        if config.teachers[name].cache:
            raise ConfigError(path, f"its outputs are read, by teachers.{name}.cache. Leave one of the two out.")
        if config.mesh.backend != "jit" or jax.process_count() > 1:
            said = f"with {config.mesh.backend} in {jax.process_count()} process(es) there is one mesh"
            raise ConfigError(path, f"{said}. Leave it out, or set mesh.backend='jit', in one process.")
        if left < 1:
            said = f"{own.devices} devices of {left + own.devices} leave none for the student"
            raise ConfigError(path, f"{said}. Lower devices.")
    return left


def _check_rows(sizes: Mapping[str, int], needed: int, split: str) -> None:
    """Each number of rows, by path, divides."""
    for path, size in sizes.items():
        if size % needed:
            raise ConfigError(path, f"{size} rows do not divide by {needed} ({split}); choose a multiple of {needed}.")
