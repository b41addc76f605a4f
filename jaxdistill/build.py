"""config -> objects: the only module that turns names into functions, and finds what is wrong before any compilation.

A run has stages: each teacher without a checkpoint is trained first, then the student, then the control. A stage is a
config too, so that one loop serves all of them.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

import jaxdistill.fusion
import jaxdistill.losses
import jaxdistill.models
import jaxdistill.steps  # noqa: F401  (importing registers the parts)
from jaxdistill import checkpoint, registry
from jaxdistill.config import differ
from jaxdistill.data import datasets
from jaxdistill.errors import ConfigError
from jaxdistill.models.combinators import in_dtype, microbatched
from jaxdistill.objective import Weighted, objective
from jaxdistill.optim import optimizer
from jaxdistill.parallel.mesh import mesh_shape
from jaxdistill.schedules import Horizon, Scalar, Schedule, as_schedule, resolve
from jaxdistill.types import Model, Objective, Outputs, Signals, Step, Variables

Shapes = Mapping[str, jax.ShapeDtypeStruct]


class Stage(NamedTuple):
    """One model to train: its name, the folder of its run, and its config."""

    name: str
    folder: Path
    config: ConfigDict


class Parts(NamedTuple):
    """What a stage's config says, as objects.

    teacher_names, teachers: in the order of the config
    schedules: what the log shows beside the losses, by name
    """

    student: Model
    teacher_names: tuple[str, ...]
    teachers: tuple[Model, ...]
    objective: Objective
    step: Step
    schedules: Mapping[str, Any]


def stages(config: ConfigDict, workdir: Path) -> list[Stage]:
    """What a run trains, in order."""
    found = []
    for number, (name, teacher) in enumerate(config.teachers.items()):
        if teacher.checkpoint:
            continue
        learned = differ(
            config,
            student={"model": teacher.model, "rules": teacher.rules},
            teachers={},
            objective=config.task.to_dict(),
            steps=teacher.steps or 1,
            rate=teacher.rate or config.rate,
            seed=config.seed + number + 1,  # teachers of one architecture shall differ
        )
        found.append(Stage(f"teacher {name}", workdir / "teachers" / name, learned))
    found.append(Stage("student", workdir / "student", config))
    if config.control and config.teachers:
        alone = differ(config, teachers={}, objective=config.task.to_dict())
        found.append(Stage("control", workdir / "control", alone))
    return found


def model(spec: str, path: str, dtype: str, pieces: int = 1) -> Model:
    """The model of a spec, in its dtype and number of pieces."""
    if not spec:
        raise ConfigError(path, f"no model is named. Known: {', '.join(registry.models)}.")
    built = registry.models.build(spec, path)
    built = in_dtype(built, dtype) if dtype != "float32" else built
    return microbatched(built, pieces) if pieces > 1 else built


def parts(config: ConfigDict, shapes: Shapes, classes: int | None, horizon: Horizon) -> Parts:
    """Everything a stage needs, checked on shapes alone.

    Args:
        config: the stage's.
        shapes: of one global batch.
        classes: how many labels the data has, if it says.
        horizon: steps of the run, and of an epoch.

    Raises:
        ConfigError: naming the path, the value and the cure.
    """
    student = model(config.student.model, "student.model", config.dtype, config.accumulate)
    names = tuple(config.teachers)
    teachers = tuple(model(config.teachers[name].model, f"teachers.{name}.model", config.dtype) for name in names)
    terms = {name: _term(entry, f"objective.{name}", name, horizon) for name, entry in config.objective.items()}
    if not terms:
        raise ConfigError("objective", f"no terms. Name at least one; losses: {', '.join(registry.losses)}.")
    _check_teachers(config, terms)
    fused = registry.fusions.build(config.fusion, "fusion")
    _check_shapes(config, student, dict(zip(names, teachers, strict=True)), terms, fused, shapes, classes)

    minimised = objective(terms, fused)
    rate = resolve(config.rate, horizon, "rate")
    roles = {role: _role(entry, f"roles.{role}", horizon) for role, entry in config.roles.items()}
    direction = registry.optimizers.build(config.optimizer, "optimizer")
    update = optimizer(direction, rate, config.clip_norm, roles)
    make_step = _with_arguments(config.step, "step")
    weights = {f"weights/{name}": as_schedule(weighted.weight) for name, weighted in terms.items()}
    softened = {name: term.temperature for name, (term, _) in terms.items() if term.temperature is not None}
    warmth = {f"temperature/{name}": temperature for name, temperature in softened.items()}
    step = make_step(student, teachers, minimised, update)
    return Parts(student, names, teachers, minimised, step, {"rate": rate, **weights, **warmth})


def _term(entry: ConfigDict, path: str, name: str, horizon: Horizon) -> Weighted:
    convert = {Scalar: lambda value, where: resolve(value, horizon, where)}
    term = registry.losses.build(entry.term or name, path, convert)
    return Weighted(term, resolve(entry.weight, horizon, f"{path}.weight"))


def _role(entry: ConfigDict, path: str, horizon: Horizon) -> tuple[Any, Schedule]:
    direction = registry.optimizers.build(entry.optimizer, f"{path}.optimizer")
    return direction, resolve(entry.rate, horizon, f"{path}.rate")


def _with_arguments(spec: str, path: str) -> Callable[..., Step]:
    """A step factory with the spec's arguments; the parts come later."""
    parsed = registry.parse(spec, path)
    parts = dict.fromkeys(("student", "teachers", "objective", "optimizer"))

    def make(student: Model, teachers: tuple[Model, ...], minimised: Objective, update: Any) -> Step:
        parts.update(student=student, teachers=teachers, objective=minimised, optimizer=update)
        return registry.steps.build(registry.Spec(parsed.name, parsed.args, {**parsed.kwargs, **parts}), path)

    return make


def _check_teachers(config: ConfigDict, terms: Mapping[str, Weighted]) -> None:
    if not config.teachers:
        for name, (term, _) in terms.items():
            if "teacher" in term.needs:
                cure = "Add teachers.NAME.model with a checkpoint, or with steps to train it here."
                raise ConfigError(f"objective.{name}", f"needs a teacher, and the config has none. {cure}")
    for name, teacher in config.teachers.items():
        if not teacher.checkpoint and not teacher.steps:
            cure = f"Set teachers.{name}.checkpoint to the folder of a run, or teachers.{name}.steps to train it here."
            raise ConfigError(f"teachers.{name}", f"has neither a checkpoint nor steps. {cure}")


def _outputs(model: Model, path: str, shapes: Shapes) -> tuple[Outputs, Variables]:
    """Shapes of a model's outputs and variables."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        values = jax.eval_shape(model.init, key, shapes)
        out, _ = jax.eval_shape(lambda v, b, k: model.apply(*v, b, train=True, key=k), values, shapes, key)
    except ConfigError:
        raise
    except (ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        raise ConfigError(path, _short(error)) from error
    return out, Variables(*values)


def _short(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error).strip().split("\n\n")[0])[:400] or type(error).__name__


def _check_shapes(config, student, teachers, terms, fused, shapes, classes) -> None:
    """Runs every part on shapes, so that what does not fit is named by its config path."""
    seen, variables = _outputs(student, "student.model", shapes)
    _check_classes("student.model", config.student.model, seen, classes)
    outputs, params = [], []
    for name, teacher in teachers.items():
        out, values = _outputs(teacher, f"teachers.{name}.model", shapes)
        _check_classes(f"teachers.{name}.model", config.teachers[name].model, out, seen.logits.shape[-1])
        outputs.append(out)
        params.append(values.params)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    by_role = {"student": variables.params, "teachers": tuple(params)}
    step = jax.ShapeDtypeStruct((), jnp.int32)
    signals: Any = Signals(seen, tuple(outputs), None, shapes, shapes["mask"], step, scalar, by_role)  # type: ignore[arg-type]
    constant = Weighted(registry.losses.build("cross_entropy", ""), 1.0)
    if teachers:
        _try_objective({"cross_entropy": constant}, fused, signals, "fusion")
    for name, weighted in terms.items():
        _try_objective({name: weighted}, fused, signals, f"objective.{name}")
    _check_layers(config, seen, outputs)


def _try_objective(terms: Mapping[str, Weighted], fused, signals: Signals, path: str) -> None:
    """Initialises and applies an objective of one term on shapes."""
    tried = objective(terms, fused)
    every = dict.fromkeys(tried.streams, signals)
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        params, state = jax.eval_shape(tried.init, key, every)
        jax.eval_shape(lambda p, s, x, k: tried.apply(p, s, x, key=k), params, state, every, key)
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        raise ConfigError(path, _short(error)) from error


def _check_classes(path: str, spec: str, outputs: Outputs, classes: int | None) -> None:
    given = outputs.logits.shape[-1]
    if classes is not None and given != classes:
        raise ConfigError(path, f"{spec!r} has {given} classes, {classes} are needed; set classes={classes}.")


def _check_layers(config: ConfigDict, student: Outputs, teachers: list[Outputs]) -> None:
    if not teachers:
        return
    for pair in config.evaluate.layers:
        for layer, states, whose in zip(pair, (student, teachers[0]), ("student", "teacher"), strict=True):
            count = len(states.hidden_states)
            if not -count <= layer < count:
                cure = f"it has layers 0 (the embedding) to {count - 1}"
                raise ConfigError("evaluate.layers", f"{pair}: the {whose} has no layer {layer}; {cure}.")


def check_mesh(config: ConfigDict) -> tuple[int, int, int]:
    """The mesh's shape.

    Raises:
        ConfigError: if it needs more devices than there are, or the batch does not divide by it.
    """
    mesh = config.mesh
    try:
        shape = mesh_shape(mesh.data, mesh.fsdp, mesh.tensor, jax.device_count())
    except ValueError as error:
        raise ConfigError("mesh", f"{error}.") from None
    if mesh.backend == "pmap" and (shape[1:] != (1, 1) or jax.process_count() > 1):
        raise ConfigError(
            "mesh", "the pmap backend splits rows only, in one process; set fsdp=1 and tensor=1, or backend='jit'."
        )
    pieces = shape[0] * shape[1]
    for path, size, needed in (
        ("batch_size", config.batch_size, pieces * config.accumulate),
        ("evaluate.batch_size", config.evaluate.batch_size, pieces),
    ):
        if size % needed:
            cure = f"choose a multiple of {needed}"
            split = f"data {shape[0]} x fsdp {shape[1]}, accumulate {config.accumulate}"
            why = f"{size} rows do not divide by {needed} ({split})"
            raise ConfigError(path, f"{why}; {cure}.")
    return shape


def teacher_checkpoint(config: ConfigDict, name: str) -> tuple[Path, str]:
    """Folder and step ("best", "last" or a number) of a teacher's checkpoint."""
    folder, _, which = config.teachers[name].checkpoint.partition("@")
    return Path(folder).expanduser() / "checkpoints", which or "last"


def check_checkpoints(config: ConfigDict, built: Parts, shapes: Shapes) -> None:
    """Every teacher's checkpoint is there, whole, and of its model.

    Raises:
        ConfigError: naming what is wrong with which file.
    """
    for name, teacher in zip(built.teacher_names, built.teachers, strict=True):
        if config.teachers[name].checkpoint:
            path = f"teachers.{name}.checkpoint"
            _, values = _outputs(teacher, path, shapes)
            try:
                checkpoint.check_variables(*teacher_checkpoint(config, name), values)
            except checkpoint.CheckpointError as error:
                raise ConfigError(path, f"{config.teachers[name].checkpoint!r}: {error}.") from None


def transforms(config: ConfigDict) -> tuple[Any, ...]:
    """The augmentation of training batches."""
    return tuple(registry.transforms.build(spec, "data.augment") for spec in config.data.augment)


def check_data(config: ConfigDict) -> None:
    """The data set is known; nothing is read or fetched yet."""
    datasets.known(config.data.name, data_folder(config))
    transforms(config)


def data_folder(config: ConfigDict) -> Path:
    """Where prepared data lies."""
    return Path(config.data.folder).expanduser() if config.data.folder else datasets.default_folder()
