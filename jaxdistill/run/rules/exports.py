"""Rules about the files that are exported when a run has ended, checked on the config alone."""

from jaxdistill.core.errors import ConfigError, suggest
from jaxdistill.export.choice import choose
from jaxdistill.run.views import ConfigView


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
