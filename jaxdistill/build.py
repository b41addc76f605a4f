"""config -> objects: names of networks, fusions, losses, steps, optimisers and caches become functions.

What is wrong with them is found before any compilation. Names of data are resolved in `sources.py`, those of devices in
`meshes.py`.

A run has stages: each teacher without a checkpoint is trained first, then the student, then the control. A stage is a
config too, so that one loop serves all of them.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import optax
from ml_collections import ConfigDict

import jaxdistill.fusion
import jaxdistill.losses
import jaxdistill.models
import jaxdistill.steps  # noqa: F401  (importing registers the parts)
from jaxdistill import checkpoint, fits, registry, sources
from jaxdistill.config import differ
from jaxdistill.data.stream import Transform
from jaxdistill.data.surfaces import Shared
from jaxdistill.errors import ConfigError
from jaxdistill.losses.gold import Vocabularies
from jaxdistill.models.cached import Keep
from jaxdistill.models.combinators import in_dtype, reading, relabelled
from jaxdistill.models.derivatives import NEEDED, with_needed
from jaxdistill.models.quantized import quantized, widened
from jaxdistill.objective import Weighted, objective
from jaxdistill.optim import optimizer
from jaxdistill.registry import Spec
from jaxdistill.schedules import Horizon, Scalar, Schedule, as_schedule, resolve
from jaxdistill.types import Factored, Fusion, Model, Objective, Shapes, Signals, Step, Term


class Stage(NamedTuple):
    """One model to train.

    name: for people
    folder: of its checkpoints and logs
    config: of this stage
    origins: (path in this config, path in the run's config) pairs, so that a mistake is reported where it was made
    """

    name: str
    folder: Path
    config: ConfigDict
    origins: tuple[tuple[str, str], ...] = ()

    def origin(self, path: str) -> str:
        """Where in the run's config a path of this stage's comes from."""
        for here, there in self.origins:
            if path == here or path.startswith(f"{here}."):
                return there + path.removeprefix(here)
        return path


class Named(NamedTuple):
    """What the spec strings of a stage's config name; nothing is known of the data yet.

    terms: with their weights
    fusion: of the teachers
    update: the whole optimiser
    schedules: what the log shows beside the losses, by name
    """

    terms: dict[str, Weighted]
    fusion: Fusion
    update: optax.GradientTransformation
    schedules: dict[str, Any]


class Parts(NamedTuple):
    """What a stage's config says, as objects.

    teacher_names, teachers: in the order of the config
    reference: the fused teacher that students are measured beside
    transforms: augmentation, by stream
    schedules: what the log shows beside the losses, by name
    """

    student: Model
    teacher_names: tuple[str, ...]
    teachers: tuple[Model, ...]
    objective: Objective
    step: Step
    reference: Fusion
    transforms: Mapping[str, tuple[Transform, ...]]
    schedules: Mapping[str, Any]


def stages(config: ConfigDict, workdir: Path) -> list[Stage]:
    """What a run trains, in order. What has no teacher learns by the plain step, whatever the student's is."""
    roles = {role: entry for role, entry in config.roles.to_dict().items() if role in ("student", "fusion", "terms")}
    plain = {"step": "offline()", "roles": roles, "teachers": {}, "objective": config.task.to_dict()}
    found = []
    for number, (name, teacher) in enumerate(config.teachers.items()):
        if teacher.checkpoint or not teacher.steps:
            continue
        learned = differ(
            config,
            **plain,
            student={"model": teacher.model, "rules": teacher.rules},
            steps=teacher.steps,
            rate=teacher.rate or config.rate,
            seed=config.seed + number + 1,  # teachers of one architecture shall differ
            data={"augment": teacher.augment, "select": "", "order": ""},
        )
        origins = [("student", f"teachers.{name}"), ("objective", "task"), ("data.augment", f"teachers.{name}.augment")]
        if teacher.rate:
            origins.append(("rate", f"teachers.{name}.rate"))
        found.append(Stage(f"teacher {name}", workdir / "teachers" / name, learned, tuple(origins)))
    found.append(Stage("student", workdir / "student", config))
    if config.control and config.teachers:
        found.append(Stage("control", workdir / "control", differ(config, **plain), (("objective", "task"),)))
    return found


def model(
    spec: str,
    path: str,
    dtype: str,
    needs: frozenset[str] = frozenset(),
    pieces: int = 1,
    classes: tuple[int, ...] = (),
) -> Model:
    """The model of a spec, in its dtype and number of pieces, with the data's classes and the gradients of terms."""
    if not spec:
        raise ConfigError(path, f"no model is named. Known: {', '.join(registry.models)}.")
    built = registry.models.build(spec, path)
    built = in_dtype(built, dtype) if dtype != "float32" else built
    return with_needed(relabelled(built, classes) if classes else built, needs, pieces)


def teacher(config: ConfigDict, name: str, needs: frozenset[str] = frozenset(), cached: Model | None = None) -> Model:
    """A teacher of a config, with the gradients that terms need, and its view of the batch.

    Args:
        cached: what takes its place where its outputs are read.
    """
    entry, path = config.teachers[name], f"teachers.{name}"
    if entry.classes and entry.steps and not entry.checkpoint:
        raise ConfigError(f"{path}.classes", "it is trained here, on the data's own classes; leave its map out.")
    built = cached or model(entry.model, f"{path}.model", config.dtype, needs, classes=entry.classes)
    if entry.quantized and entry.steps and not entry.checkpoint:
        cure = f"Train it in a run of its own, and name that run: {path}.checkpoint"
        raise ConfigError(f"{path}.quantized", f"it is trained here, and {entry.quantized} has no gradient. {cure}.")
    built = quantized(built, entry.quantized) if entry.quantized and not cached else built
    if not entry.reads:
        return built
    how = sources.tokenization(config)
    known = how.others if how else {}
    if entry.reads not in known:
        cure = f"Known: {', '.join(map(repr, known))}" if known else "data.tokens=\"aligned(...)\" gives 'teacher/'"
        raise ConfigError(f"{path}.reads", f"{entry.reads!r}: the data have no such fields. {cure}.")
    if entry.steps and not entry.checkpoint:
        cure = f"Train it in a run on its own tokens, and name that run: {path}.checkpoint"
        raise ConfigError(f"{path}.steps", f"it reads other tokens than a stage of this run trains on. {cure}.")
    return reading(built, entry.reads)


def keep_of(config: ConfigDict, name: str) -> Keep:
    """What the config keeps of a teacher."""
    return registry.caches.build(config.teachers[name].cache, f"teachers.{name}.cache")


def parts(
    config: ConfigDict,
    shapes: Mapping[str, Shapes],
    classes: int | None,
    horizon: Horizon,
    cached: Mapping[str, Model],
) -> Parts:
    """Everything a stage needs, checked on shapes alone.

    Args:
        config: the stage's.
        shapes: of the global batch, by stream.
        classes: how many labels the data has, if it says.
        horizon: steps of the run, and of an epoch.
        cached: teachers that are read from the batch, by name.

    Raises:
        ConfigError: naming the path, the value and the cure.
    """
    found = named(config, horizon)
    needs = frozenset[str]().union(*(weighted.term.needs for weighted in found.terms.values()))
    student = model(config.student.model, "student.model", config.dtype, needs, config.accumulate)
    teachers = {name: teacher(config, name, needs, cached.get(name)) for name in config.teachers}
    _check_terms(config, found.terms)
    minimised = objective(found.terms, found.fusion, config.chunks, config.kernels)
    models = tuple(teachers.values())
    given = {"student": student, "teachers": models, "objective": minimised, "optimizer": found.update}
    timed = {Scalar: lambda value, where: resolve(value, horizon, where)}
    step = registry.steps.build(_step(config, given), "step", timed)
    seen = {**shapes, **dict.fromkeys(step.own, shapes["train"])}
    signals = fits.check_shapes(config, student, teachers, found.terms, found.fusion, seen, classes)
    _check_beginnings(config, teachers, step)
    _check_streams(config, step)
    _check_gate(config, found.fusion, step)
    by_kernel = config.kernels != "xla" and config.chunks > 1 and isinstance(signals.student.logits, Factored)
    chosen = config.roles or by_kernel or registry.parse(config.step, "step").kwargs
    begins = chosen or step.grown or step.streams > minimised.streams
    if begins:  # with something that can be wrong: an abstract trace is not for nothing
        fits.check_step(config, step, shapes, models, by_kernel)
    return Parts(
        student,
        tuple(teachers),
        models,
        minimised,
        step,
        _reference(found.fusion, signals),
        sources.transforms(config),
        found.schedules,
    )


def named(config: ConfigDict, horizon: Horizon) -> Named:
    """What the spec strings of a stage's config name.

    Raises:
        ConfigError: naming the path, the value and the cure.
    """
    how = sources.tokenization(config)
    shared = functools.cache(how.shared) if how and how.shared else None
    terms = {name: _term(entry, f"objective.{name}", name, horizon, shared) for name, entry in config.objective.items()}
    if not terms:
        raise ConfigError("objective", f"no terms. Name at least one; losses: {', '.join(registry.losses)}.")
    rate = resolve(config.rate, horizon, "rate")
    if rate.low < 0:
        raise ConfigError("rate", f"{config.rate!r} reaches {rate.low:g}; a learning rate is 0 or more.")
    roles = {role: _role(entry, f"roles.{role}", horizon) for role, entry in config.roles.items()}
    direction = registry.optimizers.build(config.optimizer, "optimizer")
    weights = {f"weights/{name}": as_schedule(weighted.weight) for name, weighted in terms.items()}
    softened = {f"temperature/{name}": term.temperature for name, (term, _) in terms.items() if term.temperature}
    update = optimizer(direction, rate, config.clip_norm, roles)
    fused = registry.fusions.build(config.fusion, "fusion")
    return Named(terms, fused, update, {"rate": rate, **weights, **softened})


def check_specs(config: ConfigDict) -> None:
    """Finds what is wrong with a stage's names and arguments before any data are looked at, fetched or prepared.

    Raises:
        ConfigError: naming the path, the value and the cure.
    """
    named(config, Horizon(config.steps, config.steps))  # how long an epoch is, only the data know: no curve is shorter
    nothing = {"student": None, "teachers": (), "objective": None, "optimizer": None}  # bound, and not called
    timed = {Scalar: lambda value, where: resolve(value, Horizon(config.steps, config.steps), where)}
    registry.steps.bind(_step(config, nothing), "step", timed)
    model(config.student.model, "student.model", config.dtype)
    for name, entry in config.teachers.items():
        teacher(config, name)
        if entry.cache:
            keep_of(config, name)
        elif entry.checkpoint:
            try:
                checkpoint.choose_step(*teacher_checkpoint(config, name))
            except checkpoint.CheckpointError as error:
                raise no_checkpoint(config, name, error) from None


def no_checkpoint(config: ConfigDict, name: str, error: Exception) -> ConfigError:
    """What is wrong with the checkpoint that a config names for a teacher, with the cure."""
    cure = "Give the folder of a run, or RUN/teachers/NAME, with @best, @last or @STEP"
    return ConfigError(f"teachers.{name}.checkpoint", f"{config.teachers[name].checkpoint!r}: {error}. {cure}.")


def _step(config: ConfigDict, given: Mapping[str, Any]) -> Spec:
    """The step's spec, with what the config gives it."""
    spec = registry.parse(config.step, "step")
    if spec.args or set(given) & set(spec.kwargs):
        raise ConfigError("step", f"{config.step!r}: {', '.join(given)} are given by the config; leave them out.")
    return spec._replace(kwargs={**spec.kwargs, **given})


def _check_gate(config: ConfigDict, fused: Fusion, step: Step) -> None:
    if fused.by_step and config.teachers and not step.gates:
        cure = "Set step='routing()', with a stream of labelled records for it"
        raise ConfigError("step", f"{config.step!r} would train {config.fusion!r} by the loss that it weighs. {cure}.")
    if step.gates and not fused.by_step:
        raise ConfigError("step", f"{config.fusion!r} learns nothing from {config.step!r}; set fusion='gate()'.")


def _reference(fused: Fusion, signals: Signals) -> Fusion:
    """The fusion, if it is a fixed function of the teachers; else the mean of their probabilities.

    A gate reads the student that it was trained with; a control has none, and both must be measured beside the same.
    """
    learned = fits.variables_of(fused, signals) if signals.teachers else ()
    return registry.fusions["average"]() if learned else fused


def _check_streams(config: ConfigDict, step: Step) -> None:
    for name, entry in config.teachers.items():
        if step.own and entry.cache:
            cure = f"Leave teachers.{name}.cache out: it is asked live"
            raise ConfigError("step", f"{config.step!r} makes texts that no cache has an answer to. {cure}.")
        if entry.apart and (step.own or step.grown):
            why = "asks teachers of texts that it makes" if step.own else "makes teachers what they become"
            raise ConfigError(f"teachers.{name}.apart", f"{config.step!r} {why}: they must be beside it. Leave it out.")
        if entry.quantized and (step.grown or begins_here(config, name, step)):
            raise ConfigError(f"teachers.{name}.quantized", f"{config.step!r} makes it learn. Leave it out.")
    for stream in sorted(step.streams - set(sources.splits(config))):
        raise ConfigError("streams", f"{config.step!r} reads the stream {stream!r}; add streams.{stream}.split.")


def check_used(config: ConfigDict, plan: Parts, shapes: Shapes) -> None:
    """What a config asks for beside its parts changes something in the student's stage.

    Args:
        config: the run's.
        plan: the student's parts.
        shapes: of its batches.

    Raises:
        ConfigError: a setting would change nothing.
    """
    for stream in config.streams:
        if stream not in plan.step.streams:
            cure = f"{config.step!r} and the terms read {', '.join(sorted(plan.step.streams))}; leave it out"
            raise ConfigError(f"streams.{stream}", f"nothing reads it. {cure}.")
    head = fits.outputs(plan.student, "student.model", shapes)[0].logits if config.chunks > 1 else None
    if config.chunks > 1 and not isinstance(head, Factored):
        cure = "It is for language models, such as decoder(...); leave chunks at 1"
        raise ConfigError("chunks", f"{config.chunks} pieces of a head that is no factored one. {cure}.")
    if shapes["mask"].shape[-1] % config.chunks:
        cure = "Choose a number that divides the length of data.tokens"
        raise ConfigError("chunks", f"{config.chunks} do not divide {shapes['mask'].shape[-1]} tokens. {cure}.")
    if config.kernels != "xla" and config.chunks == 1:
        cure = "Set chunks to how many there shall be, or kernels='xla'"
        raise ConfigError("kernels", f"{config.kernels!r} is for the pieces of a factored head. {cure}.")
    if config.distributed.processes > 1 and not config.distributed.coordinator:
        cure = "Set distributed.coordinator to host:port of process 0, or to 'auto'"
        raise ConfigError("distributed.processes", f"{config.distributed.processes} processes, and none leads. {cure}.")


Sharing = Callable[[], Shared] | None  # what student and teacher share, where the data know it


def loss(spec: str | Spec, path: str, horizon: Horizon, shared: Sharing = None) -> Term:
    """The term of a spec, whose arguments may be schedules, and terms again."""

    def vocabulary(value: Any, where: str) -> Shared | None:
        if value is not None:
            raise ConfigError(where, "comes from the tokenizers of data.tokens; leave it out.")
        return shared() if shared else None

    convert: dict[Any, Callable[[Any, str], Any]] = {
        Scalar: lambda value, where: resolve(value, horizon, where),
        Term: lambda value, where: loss(value, where, horizon, shared),
        Vocabularies: vocabulary,
    }
    return registry.losses.build(spec, path, convert)


def _term(entry: ConfigDict, path: str, name: str, horizon: Horizon, shared: Sharing) -> Weighted:
    term = loss(entry.term or name, path, horizon, shared)
    term = term._replace(stream=entry.stream) if entry.stream else term
    return Weighted(term, resolve(entry.weight, horizon, f"{path}.weight"))


def _role(entry: ConfigDict, path: str, horizon: Horizon) -> tuple[Any, Schedule]:
    direction = registry.optimizers.build(entry.optimizer, f"{path}.optimizer")
    return direction, resolve(entry.rate, horizon, f"{path}.rate")


def _check_terms(config: ConfigDict, terms: Mapping[str, Weighted]) -> None:
    lack = {"cache": "which no batch brings", "apart": "which no batch brings", "quantized": "and 8 bits have none"}
    read = [
        (f"{name}.{key}", why) for name, entry in config.teachers.items() for key, why in lack.items() if entry[key]
    ]
    for name, (term, _) in terms.items():
        if "teacher" in term.needs and not config.teachers:
            cure = "Add teachers.NAME.model with a checkpoint, or with steps to train it here."
            raise ConfigError(f"objective.{name}", f"needs a teacher, and the config has none. {cure}")
        if read and (gradients := sorted(term.needs & NEEDED)):
            (where, why), *_ = read
            cure = f"Remove teachers.{where}"
            raise ConfigError(f"objective.{name}", f"needs {gradients[0]}, {why}. {cure}.")
    _check_draws(config, terms)


def _check_draws(config: ConfigDict, terms: Mapping[str, Weighted]) -> None:
    """Draws are a teacher's distribution in expectation: of a term that is linear in it, at their temperature."""
    keeps = {name: keep_of(config, name) for name, entry in config.teachers.items() if entry.cache}
    for teacher, keep in keeps.items():
        for name, (term, _) in terms.items():
            if not keep.draws or "teacher" not in term.needs:
                continue
            path, at = f"objective.{name}", term.temperature
            if not term.linear or registry.parse(config.fusion, "fusion").name != "single":
                cure = (
                    f"Set objective.{name}.term='kd(...)' and fusion='single()', or keep teachers.{teacher} by outputs"
                )
                raise ConfigError(path, f"of a teacher's draws this term has another expectation. {cure}.")
            if not (isinstance(at, Schedule) and at.low == at.high == keep.temperature):
                cure = f"Set its temperature, or that of teachers.{teacher}.cache, which is {keep.temperature:g}"
                raise ConfigError(path, f"reads classes that were drawn at another temperature. {cure}.")


def begins_here(config: ConfigDict, name: str, step: Step) -> bool:
    """Whether a teacher begins as the student does, since the step makes it what it becomes."""
    entry = config.teachers[name]
    return list(config.teachers).index(name) in step.makes and not (entry.checkpoint or entry.steps or entry.cache)


def _check_beginnings(config: ConfigDict, teachers: Mapping[str, Model], step: Step) -> None:
    for name, entry in config.teachers.items():
        path = f"teachers.{name}"
        if begins_here(config, name, step):
            if entry.classes:
                raise ConfigError(f"{path}.classes", "it learns here, the data's own classes; leave its map out.")
        elif not (entry.checkpoint or entry.steps or entry.cache or teachers[name].load):
            cure = f"Set {path}.checkpoint to the folder of a run, or {path}.steps to train it here."
            raise ConfigError(path, f"has neither a checkpoint nor steps. {cure}")


def teacher_checkpoint(config: ConfigDict, name: str) -> tuple[Path, str]:
    """Folder and step ("best", "last" or a number) of a teacher's checkpoint."""
    given, _, which = config.teachers[name].checkpoint.partition("@")
    folder = Path(given).expanduser()
    student = folder / "student"  # a whole run stands for its student
    return (student if student.is_dir() else folder) / "checkpoints", which or "last"


def check_checkpoints(config: ConfigDict, built: Parts, shapes: Shapes) -> None:
    """Every teacher's checkpoint is there, whole, and of its model; so is what a network starts from.

    Raises:
        ConfigError: naming what is wrong with which file.
    """
    fits.check_pretrained(built.student, "student.model", shapes, complete=False)
    for name, teacher in zip(built.teacher_names, built.teachers, strict=True):
        if config.teachers[name].cache:
            continue
        entry = config.teachers[name]
        untrained = not entry.checkpoint and not entry.steps and not begins_here(config, name, built.step)
        fits.check_pretrained(teacher, f"teachers.{name}.model", shapes, complete=untrained)
    for name, teacher in zip(built.teacher_names, built.teachers, strict=True):
        if config.teachers[name].checkpoint and not config.teachers[name].cache:
            path = f"teachers.{name}.checkpoint"
            _, values = fits.outputs(teacher, path, shapes)
            try:
                checkpoint.check_variables(*teacher_checkpoint(config, name), widened(values))
            except checkpoint.CheckpointError as error:
                raise no_checkpoint(config, name, error) from None
