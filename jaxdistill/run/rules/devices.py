"""Rules about devices and batches, from a config's text alone."""

from collections.abc import Mapping

import jax

from jaxdistill.core.errors import ConfigError
from jaxdistill.parallel.mesh import mesh_shape
from jaxdistill.run.config import Config
from jaxdistill.run.views import Text
from jaxdistill.teachers.submesh import KEY


def one_way_of_delivery(text: Text) -> None:
    """At most one option changes how a teacher's outputs reach the student."""
    for entry in text.entries.values():
        first, *more = [option.key for option, _ in entry.set_options() if option.delivers] or [""]
        if more:
            why = f"its outputs are read, by {entry.path}.{more[0]}"
            raise ConfigError(f"{entry.path}.{first}", f"{why}. Leave one of the two out.")


def teachers_with_own_devices(text: Text) -> None:
    """Teachers with devices of their own run under jit, in one process, and leave devices for the student."""
    backend, left = text.config.mesh.backend, text.devices
    for entry in text.entries.values():
        for capability, happens in (("pmap", backend == "pmap"), ("processes", jax.process_count() > 1)):
            if happens and (lack := entry.lacks(capability)):
                option, why = lack
                said = f"with {backend} in {jax.process_count()} process(es): {why}"
                raise ConfigError(
                    f"{entry.path}.{option}", f"{said}. Leave it out, or set mesh.backend='jit', in one process."
                )
        own = entry.devices()
        if own >= left:
            why = f"{own} devices of {left} leave none for the student"
            raise ConfigError(f"{entry.path}.{KEY}", f"{why}. Lower devices.")
        left -= own


def student_mesh(config: Config, own: int, devices: int) -> tuple[int, int, int]:
    """The shape of the student's mesh.

    Args:
        config: of the run.
        own: devices that teachers have for themselves.
        devices: how many there are.

    Raises:
        ConfigError: it needs more devices than are left.
    """
    mesh, left = config.mesh, devices - own
    try:
        return mesh_shape(mesh.data, mesh.fsdp, mesh.tensor, left)
    except ValueError as error:
        taken = f" ({own} of {devices} are teachers' own)" if own else ""
        raise ConfigError("mesh", f"{error}{taken}.") from None


def _shape(text: Text) -> tuple[int, int, int]:
    return student_mesh(text.config, sum(entry.devices() for entry in text.entries.values()), text.devices)


def mesh_fits(text: Text) -> None:
    """The mesh has as many devices as there are, or fewer."""
    _shape(text)


def pmap_splits_rows(text: Text) -> None:
    """Pmap splits rows only, in one process."""
    if text.config.mesh.backend == "pmap" and (_shape(text)[1:] != (1, 1) or jax.process_count() > 1):
        raise ConfigError(
            "mesh", "the pmap backend splits rows only, in one process; set fsdp=1 and tensor=1, or backend='jit'."
        )


def kernels_read_whole_rows(text: Text) -> None:
    """A kernel reads whole rows of logits, which tensor would split."""
    size = _shape(text)[2]
    if text.config.kernels != "xla" and size > 1:
        cure = "Split rows instead, by data and fsdp, or set kernels='xla'"
        why = f"{size} splits the rows of logits that kernels='pallas' reads whole"
        raise ConfigError("mesh.tensor", f"{why}. {cure}.")


def batches_divide(text: Text) -> None:
    """Every batch divides by the devices that share it, training batches by the pieces of accumulation too."""
    config, (data, fsdp, _) = text.config, _shape(text)
    split = f"data {data} x fsdp {fsdp}, accumulate {config.accumulate}"
    streams = {f"streams.{n}.batch_size": s.batch_size or config.batch_size for n, s in config.streams.items()}
    training, evaluation = {"batch_size": config.batch_size, **streams}, config.evaluate.batch_size
    _divide(training, data * fsdp * config.accumulate, split)
    _divide({"evaluate.batch_size": evaluation}, data * fsdp, split)
    for entry in text.entries.values():
        if own := entry.devices():
            _divide(training | {"evaluate.batch_size": evaluation}, own, f"{entry.path}.{KEY}")


def _divide(sizes: Mapping[str, int], by: int, split: str) -> None:
    for path, size in sizes.items():
        if size % by:
            raise ConfigError(path, f"{size} rows do not divide by {by} ({split}); choose a multiple of {by}.")


def processes_have_a_leader(text: Text) -> None:
    """Several processes name the address of the first."""
    place = text.config.distributed
    if place.processes > 1 and not place.coordinator:
        cure = "Set distributed.coordinator to host:port of process 0, or to 'auto'"
        raise ConfigError("distributed.processes", f"{place.processes} processes, and none leads. {cure}.")
