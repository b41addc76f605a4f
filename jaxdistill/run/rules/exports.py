"""Rules about the files that are exported when a run has ended, checked on the config alone."""

from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError, suggest
from jaxdistill.export.choice import check_model, choose
from jaxdistill.export.network import Definition
from jaxdistill.models.pretrained import architecture_of_spec
from jaxdistill.run.views import ConfigView, RunView


def exports_can_be_written(view: ConfigView) -> None:
    """Check that formats, runtimes and models of exported files are known, and their packages installed."""
    trained = [f"teachers/{name}" for name, teacher in view.teacher_configs.items() if teacher.steps]
    models = ["student", *(["control"] if view.config.control and view.teacher_configs else []), *trained]
    for name, entry in view.config.exports.items():
        path = f"exports.{name}"
        choose(entry.to, entry.runtime, f"{path}.to", f"{path}.runtime")
        if entry.model not in models:
            raise ConfigError(f"{path}.model", f"the run trains no {entry.model!r}. {suggest(entry.model, models)}")
        if view.config.distributed.coordinator:
            raise ConfigError(path, "files are exported by one process; use `jaxdistill export` after the run.")


def exports_can_hold_their_models(run: RunView) -> None:
    """Check that the format of each exported file can hold the architecture of its model."""
    specs = {f"teachers/{name}": teacher.model for name, teacher in run.teacher_configs.items()}
    for name, entry in run.config.exports.items():
        path = f"exports.{name}.to"
        form = architecture_of_spec(specs.get(entry.model, run.config.student.model))
        definition = form and Definition(form.family, form.arguments)
        check_model(registry.exporters.build(entry.to, path), entry.to, entry.model, definition, path)
