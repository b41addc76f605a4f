"""Compute the architecture of a student that is pruned from a trained model; no data and no weights are needed."""

import inspect
from pathlib import Path

from jaxdistill.compress.cut import Cut, cuttable, sizes_after
from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError, suggest
from jaxdistill.core.spec import Spec
from jaxdistill.export.model_folder import ABOUT
from jaxdistill.models.hub.family import with_defaults
from jaxdistill.models.pretrained import Architecture, architecture_of_spec, sources_of
from jaxdistill.run.config import Config, differ
from jaxdistill.teachers.build import OPTIONS

PATH = "student.model"


def cut_of(config: Config) -> Cut | None:
    """Return the structured pruning of a trained model that makes the student, from the spec string `student.model`.

    Return None if the spec string names no pruning (no function in `registry.cuts`, such as `cut`).

    Raises:
        ConfigError: the spec string is wrong; the teacher to prune does not exist, has no weights before the student's
            training, or has the key `reads` or `classes`; or the run has several processes.
    """
    text = config.student.model
    if text.partition("(")[0].strip() not in registry.cuts:
        return None
    cut: Cut = registry.cuts.build(text, PATH)
    if config.distributed.coordinator:
        cure = "Cut it in a run of one process first, and start from its folder: pretrained('RUN/student/hub')"
        raise ConfigError(PATH, f"{text!r}: units are chosen by one process. {cure}.")
    if cut.teacher and cut.teacher not in config.teachers:
        raise ConfigError(PATH, f"there is no teacher {cut.teacher!r}. {suggest(cut.teacher, config.teachers)}")
    if cut.teacher:
        entry = config.teachers[cut.teacher]
        if not (entry.checkpoint or entry.steps or sources_of(entry.model)):
            problem = f"is cut out of {cut.teacher!r}, which has no weights before the student's training"
            raise ConfigError(PATH, f"{problem}. Set teachers.{cut.teacher}.checkpoint or .steps.")
        for option in OPTIONS:
            if entry.get(option.key) and (reason := option.lacks(entry[option.key]).get("cutting")):
                key = f"teachers.{cut.teacher}.{option.key}"
                raise ConfigError(PATH, f"is cut out of {cut.teacher!r}, and {reason}. Leave {key} empty.")
    return cut


def source_of(config: Config, cut: Cut) -> tuple[str, str]:
    """Return the spec string of the trained model that is pruned, and the config key that names this model.

    Raises:
        ConfigError: the model is a folder without Hugging Face format.
    """
    if cut.teacher:
        return config.teachers[cut.teacher].model, f"teachers.{cut.teacher}.model"
    if (Path(cut.source) / ABOUT).is_file() and not (Path(cut.source) / "config.json").is_file():
        cure = "Models of its family are cut out of a teacher: cut(teacher='NAME')"
        raise ConfigError(PATH, f"{cut.source!r} has no Hugging Face format. {cure}.")
    # the student may have another number of classes
    head = {name: value for name, value in cut.options.items() if name == "classes"}
    return repr(Spec("pretrained", (cut.source,), head)), PATH


def architecture(spec: str, path: str = PATH) -> Architecture:
    """Return the architecture (family and arguments) of the model that a spec string describes.

    Args:
        spec: spec string of the model, such as "mlp(widths=(64,), classes=10)".
        path: config key of the spec string, for error messages.

    Raises:
        ConfigError: the spec string is wrong.
    """
    if form := architecture_of_spec(spec, path):
        return form
    factory, bound = registry.models.bind(spec, path)
    accepts = inspect.signature(factory).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepts):
        return Architecture(factory.__name__, dict(bound.arguments), (), {})
    return Architecture(factory.__name__, with_defaults(factory, bound.arguments), (), {})


def _may_change(option: str) -> bool:
    """Return True if the pruned student may have another value for a model argument than the original model."""
    return "dropout" in option or option in ("classes", "remat", "attention", "attentions")


def with_sizes(config: Config) -> Config:
    """Return a config whose `student.model` is the spec string of the smaller model that structured pruning leaves.

    A config without structured pruning (`cut`) is returned unchanged.

    Raises:
        ConfigError: the model cannot be pruned in this way.
    """
    if (cut := cut_of(config)) is None:
        return config
    source = architecture(*source_of(config, cut))
    known = inspect.signature(registry.models[source.family]).parameters
    if unknown := [name for name in cut.options if name not in known]:
        cut_parameters = inspect.signature(registry.cuts["cut"]).parameters
        names = [name for name in cut_parameters if name != "options"]
        close = suggest(unknown[0], [*names, *(name for name in known if _may_change(name))])
        raise ConfigError(PATH, f"neither cut nor {source.family} has an argument {unknown[0]!r}. {close}")
    if fixed := [name for name in cut.options if not _may_change(name)]:
        problem = f"{fixed[0]}={cut.options[fixed[0]]!r} is what the cut decides, or what its weights were made for"
        raise ConfigError(PATH, f"{config.student.model!r}: {problem}; leave it out.")
    try:
        sizes = sizes_after(cut, source.family, source.arguments)
        arguments = cuttable(source.family).arguments(source.arguments, sizes) | dict(cut.options)
    except ValueError as error:
        raise ConfigError(PATH, f"{config.student.model!r}: {error}.") from None
    return differ(config, student={"model": repr(Spec(source.family, (), arguments))})
