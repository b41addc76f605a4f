"""A config becomes values, once: data, mesh, teachers and stages, checked and frozen; nothing is compiled.

Every command starts from `resolve`. Each part is resolved when it is first asked for, with the rules that it needs
(`validate.py`), so that a command which cuts a vocabulary does not need the weights of the student.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError, suggest
from jaxdistill.core.schedules import Horizon
from jaxdistill.core.types import Fusion, Shapes
from jaxdistill.data.pipeline import Pipeline, Stream
from jaxdistill.data.stream import Transform
from jaxdistill.models.hub.packages import default_folder
from jaxdistill.parallel.mesh import build_mesh
from jaxdistill.parallel.sharding import DEFAULT_RULES, Rules
from jaxdistill.run.config import differ
from jaxdistill.run.parts import Named, Parts, build_parts, name_parts
from jaxdistill.run.rules.devices import student_mesh
from jaxdistill.run.validate import check
from jaxdistill.run.views import DataView, StageText, StageView, Text
from jaxdistill.teachers.build import OPTIONS, Entry, allocated, build
from jaxdistill.teachers.option import Context
from jaxdistill.teachers.teacher import Teacher

Kind = Literal["teacher", "student", "control"]


class Planned(NamedTuple):
    """A stage of a run by its config: one model to train.

    kind: what the model is
    teacher: its name, of a teacher
    config: of this stage
    origins: (path in this config, path in the run's) pairs, so that a mistake is reported where it was made
    """

    kind: Kind
    teacher: str
    config: ConfigDict
    origins: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """Its name in logs and results."""
        return f"teacher {self.teacher}" if self.kind == "teacher" else self.kind

    @property
    def folder(self) -> Path:
        """Its folder in the workdir."""
        return Path("teachers", self.teacher) if self.kind == "teacher" else Path(self.kind)

    def origin(self, path: str) -> str:
        """Where in the run's config a path of this stage's comes from."""
        for here, there in self.origins:
            if path == here or path.startswith(f"{here}."):
                return there + path.removeprefix(here)
        return path

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Reports mistakes of the stage's config at the path of the run's where they were made."""
        try:
            yield
        except ConfigError as error:
            raise ConfigError(self.origin(error.path), error.message) from None


class Logging(NamedTuple):
    """The section `logging` of a config."""

    every: int
    tensorboard: bool
    wandb: str
    trace: int
    compilation_cache: str


class Settings(NamedTuple):
    """The numbers of a stage.

    steps, seed: of the stage
    evaluate_every: steps between evaluations
    evaluate_rows: rows of an evaluation batch
    layers: (student layer, teacher layer) pairs whose CKA is measured
    backend: "jit" or "pmap"
    rules: how the student's parameters are laid out
    logging: what is written
    """

    steps: int
    seed: int
    evaluate_every: int
    evaluate_rows: int
    layers: tuple[tuple[int, int], ...]
    backend: str
    rules: Rules
    logging: Logging


class Stage(NamedTuple):
    """A stage of a run, resolved.

    planned: its kind, name, folder and config
    settings: its numbers
    data: that it reads
    shapes: of its batches, by stream, with the fields that its teachers add
    parts: of the stage
    view: the stage as rules look at it
    """

    planned: Planned
    settings: Settings
    data: Pipeline
    shapes: Mapping[str, Shapes]
    parts: Parts
    view: StageView

    @property
    def kind(self) -> Kind:
        """What its model is."""
        return self.planned.kind

    @property
    def name(self) -> str:
        """Its name in logs and results."""
        return self.planned.name

    @property
    def teachers(self) -> Mapping[str, Teacher]:
        """Whom it learns from, by name."""
        return {teacher.name: teacher for teacher in self.parts.teachers}


@dataclass(frozen=True)
class Resolved:
    """What a config says, as values. See `resolve`.

    Args:
        config: of the run
        devices: that it may use
    """

    config: ConfigDict
    devices: tuple[jax.Device, ...]

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """The sections `teachers.NAME`, checked with all that the config's text says of devices."""
        config, keys = self.config, [option.key for option in OPTIONS]
        found = {
            name: Entry(
                name,
                section.model,
                section.checkpoint,
                section.steps,
                section.rules,
                {key: section[key] for key in keys if section.get(key)},
                config.seed + number + 1,  # as that of a stage which trains it: teachers of one architecture differ
                config.dtype,
            )
            for number, (name, section) in enumerate(config.teachers.items())
        }
        check("text", Text(config, found, len(self.devices)))
        return MappingProxyType(found)

    @cached_property
    def planned(self) -> tuple[Planned, ...]:
        """The stages by their configs, in order, with the spec strings checked."""
        stages = tuple(plan_stages(self.config))
        for stage in stages:
            with stage.reporting():
                _ = self._named(stage)
        return stages

    def _named(self, stage: Planned) -> Named:
        """What the spec strings of a stage name, with an epoch of the whole run: only the data know its length."""
        config, entries = stage.config, self.entries if stage.kind == "student" else {}
        tokens = registry.tokenizations.build(config.data.tokens, "data.tokens") if config.data.tokens else None
        named = name_parts(config, Horizon(config.steps, config.steps), tokens)
        check("stage text", StageText(config, entries, named))
        return named

    @cached_property
    def data(self) -> Pipeline:
        """The data of the student's stage."""
        found = pipeline(self.config)
        check("data", DataView(self.config, found))
        return found

    @cached_property
    def mesh(self) -> Mesh:
        """The student's mesh."""
        own = sum(entry.devices() for entry in self.entries.values())
        return build_mesh(student_mesh(self.config, own, len(self.devices)), self.devices)

    @cached_property
    def teachers(self) -> Mapping[str, Teacher]:
        """The teachers, by name, with all of their options."""
        (student,) = (stage for stage in self.planned if stage.kind == "student")
        needs, devices = self._named(student).needs, allocated(self.entries, self.devices)
        built = {name: build(entry, self._context(devices[name], needs)) for name, entry in self.entries.items()}
        return MappingProxyType(built)

    def live_teacher(self, name: str, alone: bool = False) -> Teacher:
        """A teacher that computes its own outputs, whatever its config says of a cache or devices of its own.

        Args:
            name: of the teacher.
            alone: on one device; else on the student's mesh.

        Raises:
            ConfigError: there is no such teacher.
        """
        if name not in self.config.teachers:
            raise ConfigError("teachers", f"there is no teacher {name!r}. {suggest(name, self.config.teachers)}")
        context = self._context()._replace(mesh=build_mesh((1, 1, 1)) if alone else self.mesh)
        return build(self.entries[name], context, live=True)

    def _context(self, devices: tuple[jax.Device, ...] = (), needs: frozenset[str] = frozenset()) -> Context:
        config = self.config
        return Context(self.data, self.mesh, devices, config.chunks, config.steps, needs)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages, each checked on shapes, and what they make up together."""
        _ = self.planned, self.data  # names are checked before any data are looked at
        found = []
        for planned in self.planned:
            with planned.reporting():
                found.append(self._stage(planned))
        return tuple(found)

    def _stage(self, planned: Planned) -> Stage:
        config = planned.config
        teachers = self.teachers if planned.kind == "student" else {}
        entries = self.entries if planned.kind == "student" else {}
        data = self.data if planned.kind == "student" else pipeline(config, self.data)
        horizon = Horizon(config.steps, data.learned() / config.batch_size)
        parts = build_parts(config, name_parts(config, horizon, data.tokenization), teachers, horizon)
        shapes = {name: {**rows, **added(teachers, name, rows)} for name, rows in data.shapes.items()}
        view = StageView(config, entries, data, shapes, parts, self.mesh)
        check("stage", view)
        return Stage(planned, settings(config), data, shapes, parts, view)

    @cached_property
    def student(self) -> Stage:
        """The student's stage."""
        return next(stage for stage in self.stages if stage.kind == "student")

    @cached_property
    def reference(self) -> Fusion:
        """The fusion that students are measured beside: the student's, or the mean of probabilities where it learns.

        A gate reads the student that it was trained with; a control has none, and both are measured beside the same.
        """
        return registry.fusions["average"]() if self.student.view.fusion_learns else self.student.parts.named.fusion

    def check_run(self) -> None:
        """Checks everything that can be known before a run compiles, except its weights and its workdir."""
        _ = self.stages
        check("run", self)

    def check_weights(self) -> None:
        """Checks the files that models are loaded from."""
        check("weights", self)

    def check_workdir(self, workdir: Path) -> None:
        """Checks the folder that the run writes to."""
        check("workdir", self, workdir)


def resolve(config: ConfigDict, devices: Sequence[jax.Device]) -> Resolved:
    """Resolves a config; nothing is compiled.

    Args:
        config: a whole config, from `jaxdistill.make` or a config file.
        devices: that the run may use.

    Raises:
        ConfigError: naming the path, the value and the cure, here or when a part is first asked for.
    """
    return Resolved(config, tuple(devices))


def plan_stages(config: ConfigDict) -> Iterator[Planned]:
    """What a run trains, in order. A stage without teachers learns by the plain step, whatever the student's is."""
    roles = {role: entry for role, entry in config.roles.to_dict().items() if role in ("student", "fusion", "terms")}
    plain = {"step": "offline()", "roles": roles, "teachers": {}, "objective": config.task.to_dict()}
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
        yield Planned("teacher", name, learned, tuple(origins))
    yield Planned("student", "", config)
    if config.control and config.teachers:
        yield Planned("control", "", differ(config, **plain), (("objective", "task"),))


def pipeline(config: ConfigDict, known: Pipeline | None = None) -> Pipeline:
    """The data of a stage.

    Args:
        config: of the stage.
        known: of the run, whose records are described already.
    """
    data = config.data

    def stream(split: str, path: str, key: str, rows: int, augment: tuple[str, ...], augmented: str) -> Stream:
        return Stream(split, path, key, rows, augment, _transforms(augment, augmented))

    train = stream(data.train, "data", "train", config.batch_size, data.augment, "data.augment")
    further = {
        name: stream(
            entry.split,
            f"streams.{name}",
            "split",
            entry.batch_size or config.batch_size,
            entry.augment,
            f"streams.{name}.augment",
        )
        for name, entry in config.streams.items()
    }
    fixed = tuple(transform for transform in train.transforms if not transform.draws)
    return Pipeline(
        name=data.name,
        folder=Path(data.folder).expanduser() if data.folder else default_folder(),
        tokens=data.tokens,
        seed=config.seed,
        streams={"train": train, **further},
        test=train._replace(split=data.test, key="test", transforms=fixed),
        select=data.select,
        order=data.order,
        known=known.descriptions if known else None,
    )


def _transforms(specs: tuple[str, ...], path: str) -> tuple[Transform, ...]:
    return tuple(registry.transforms.build(spec, path) for spec in specs)


def added(teachers: Mapping[str, Teacher], stream: str, rows: Shapes) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the fields that teachers add to the batches of a stream."""
    count = rows["mask"].shape[0]
    fields: dict[str, Any] = {}
    for teacher in teachers.values():
        fields |= teacher.fields(stream)
    return {name: jax.ShapeDtypeStruct((count, *shape), dtype) for name, (shape, dtype) in fields.items()}


def settings(config: ConfigDict) -> Settings:
    """The numbers of a stage's config."""
    evaluate, log = config.evaluate, config.logging
    return Settings(
        steps=config.steps,
        seed=config.seed,
        evaluate_every=evaluate.every,
        evaluate_rows=evaluate.batch_size,
        layers=evaluate.layers,
        backend=config.mesh.backend,
        rules=config.student.rules or DEFAULT_RULES,
        logging=Logging(log.every, log.tensorboard, log.wandb, log.trace, log.compilation_cache),
    )
