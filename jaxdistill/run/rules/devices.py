"""Rules about devices and batches, checked on the config alone."""

from collections.abc import Mapping

import jax

from jaxdistill.core.errors import ConfigError
from jaxdistill.run.views import ConfigView
from jaxdistill.teachers.option import Capability
from jaxdistill.teachers.submesh import KEY


def teachers_have_one_delivery(view: ConfigView) -> None:
    """Require that no teacher has two options that bring its outputs to the student in different ways.

    Such options are `cache` (the outputs are read from disk) and `placement` (the teacher runs on separate devices).
    """
    for teacher in view.teacher_configs.values():
        first, *others = [option.key for option, _ in teacher.set_options() if option.delivers] or [""]
        if others:
            problem = f"the outputs of this teacher are already delivered by {teacher.path}.{others[0]}"
            raise ConfigError(f"{teacher.path}.{first}", f"{problem}. Leave one of the two out.")


def teachers_with_own_devices(view: ConfigView) -> None:
    """Require that teachers on separate devices leave at least one device for the student.

    If there are such teachers, the run must also have a single process and `mesh.backend="jit"`.
    """
    backend, free = view.config.mesh.backend, view.devices
    required: dict[Capability, bool] = {"pmap": backend == "pmap", "processes": jax.process_count() > 1}
    for teacher in view.teacher_configs.values():
        for capability in (name for name, is_required in required.items() if is_required):
            if lack := teacher.lacks(capability):
                option, reason = lack
                problem = f"does not work with {backend} in {jax.process_count()} process(es): {reason}"
                raise ConfigError(
                    f"{teacher.path}.{option}", f"{problem}. Leave it out, or set mesh.backend='jit', in one process."
                )
        count = teacher.devices()
        if count >= free:
            problem = f"{count} of {free} free devices leave none for the student"
            raise ConfigError(f"{teacher.path}.{KEY}", f"{problem}. Lower devices.")
        free -= count


def mesh_fits(view: ConfigView) -> None:
    """Require that enough devices are left for the student's mesh, beside those that are reserved for teachers."""
    view.student_mesh()


def pmap_splits_rows(view: ConfigView) -> None:
    """Require that a run with the backend pmap has one process, and splits batches alone over devices."""
    if view.config.mesh.backend == "pmap" and (view.student_mesh()[1:] != (1, 1) or jax.process_count() > 1):
        raise ConfigError(
            "mesh", "the pmap backend splits rows only, in one process; set fsdp=1 and tensor=1, or backend='jit'."
        )


def kernels_read_whole_rows(view: ConfigView) -> None:
    """Require that `mesh.tensor` is 1 if Pallas kernels compute the losses.

    A kernel reads all logits of a token on one device, but `mesh.tensor` splits these logits over devices.
    """
    size = view.student_mesh()[2]
    if view.config.kernels != "xla" and size > 1:
        cure = "Use mesh.data and mesh.fsdp instead, or set kernels='xla'"
        problem = f"{size} splits the rows of logits that kernels='pallas' reads whole"
        raise ConfigError("mesh.tensor", f"{problem}. {cure}.")


def batches_divide(view: ConfigView) -> None:
    """Require that batches can be split evenly over the devices.

    Training batch sizes must be multiples of `mesh.data * mesh.fsdp * accumulate` (the last factor is for gradient
    accumulation), and the evaluation batch size of `mesh.data * mesh.fsdp`. If a teacher has separate devices, all
    batch sizes must also be multiples of the number of these devices.
    """
    config, (data, fsdp, _) = view.config, view.student_mesh()
    streams = {f"streams.{n}.batch_size": s.batch_size or config.batch_size for n, s in config.streams.items()}
    training, evaluation = {"batch_size": config.batch_size, **streams}, config.evaluate.batch_size
    _check_divisible(training | {"evaluate.batch_size": evaluation}, data * fsdp, f"data {data} x fsdp {fsdp}")
    for path, size in training.items():
        rows = size // (data * fsdp)
        if rows % config.accumulate:
            problem = f"{config.accumulate} does not divide the {rows} rows of {path}={size} on each device"
            raise ConfigError("accumulate", f"{problem}; choose a divisor of {rows}, or another {path}.")
    for teacher in view.teacher_configs.values():
        if count := teacher.devices():
            _check_divisible(training | {"evaluate.batch_size": evaluation}, count, f"{teacher.path}.{KEY}")


def _check_divisible(sizes: Mapping[str, int], divisor: int, split: str) -> None:
    for path, size in sizes.items():
        if size % divisor:
            problem = f"{size} rows are not divisible by {divisor} ({split})"
            raise ConfigError(path, f"{problem}; choose a multiple of {divisor}.")


def processes_have_a_coordinator(view: ConfigView) -> None:
    """Require that a run with several processes sets `distributed.coordinator`, the address of process 0."""
    distributed = view.config.distributed
    if distributed.processes > 1 and not distributed.coordinator:
        cure = "Set distributed.coordinator to host:port of process 0, or to 'auto'"
        raise ConfigError("distributed.processes", f"{distributed.processes} processes need a coordinator. {cure}.")


def process_is_below_processes(view: ConfigView) -> None:
    """Require that the number of this process (from 0) is below the number of processes.

    With `distributed.coordinator="auto"`, the cluster sets both numbers, and nothing is checked.
    """
    distributed = view.config.distributed
    if distributed.coordinator != "auto" and distributed.process >= distributed.processes:
        problem = f"{distributed.process} is not below distributed.processes={distributed.processes}"
        raise ConfigError("distributed.process", f"{problem}; processes are numbered from 0.")
