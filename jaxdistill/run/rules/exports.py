"""Rules about the files that are exported when a run has ended, checked on the config alone."""

import os

from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError, suggest
from jaxdistill.export.choice import check_model, choose, choose_device
from jaxdistill.export.device_profile import check_device
from jaxdistill.export.network import Definition
from jaxdistill.models.pretrained import architecture_of_spec
from jaxdistill.run.views import ConfigView, RunView


def exports_can_be_written(view: ConfigView) -> None:
    """Require that the export section names known formats, runtimes, devices and models, with their packages installed.

    A file may not use more processors than this process has, and the run must have a single process.
    """
    trained = [f"teachers/{name}" for name, teacher in view.teacher_configs.items() if teacher.steps]
    config, processors = view.config, len(os.sched_getaffinity(0))
    controls = [
        name for name, is_there in (("control", view.teacher_configs), ("floats", config.student.quantized)) if is_there
    ]
    models = ["student", *(controls if config.control else []), *trained]
    for name, entry in view.config.exports.items():
        path = f"exports.{name}"
        choose(entry.to, entry.runtime, f"{path}.to", f"{path}.runtime")
        if entry.device:
            choose_device(entry.device, f"{path}.device", [entry.to])
        if entry.model not in models:
            raise ConfigError(f"{path}.model", f"the run trains no {entry.model!r}. {suggest(entry.model, models)}")
        if entry.threads > processors:
            problem = f"{entry.threads} are more than the {processors} processors of this process"
            raise ConfigError(f"{path}.threads", f"{problem}. Give at most {processors}.")
        if view.config.distributed.coordinator:
            raise ConfigError(path, "files are exported by one process; use `jaxdistill export` after the run.")


def exports_can_hold_their_models(run: RunView) -> None:
    """Require that each export format can hold its model's architecture, and the target device the model's weights.

    The device is checked only if the config names one.
    """
    specs = {f"teachers/{name}": teacher.model for name, teacher in run.teacher_configs.items()}
    student = run.student.definition.config.student.model
    stages = {str(stage.definition.folder): stage for stage in run.stages}
    for name, entry in run.config.exports.items():
        path = f"exports.{name}.to"
        form = architecture_of_spec(specs.get(entry.model, student))
        definition = form and Definition(form.family, form.arguments)
        check_model(registry.exporters.build(entry.to, path), entry.to, entry.model, definition, path)
        if entry.device and entry.model in stages:
            params = stages[entry.model].view.train_state.params["student"]
            size, path = sum(x.size for x in params.values()), f"exports.{name}.device"
            check_device(choose_device(entry.device, path), entry.device, entry.to, size, entry.model, path)
