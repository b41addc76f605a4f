"""The stages of a run. Each trains one model from its own config, so that one training loop serves all of them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.types import Shapes
from jaxdistill.data.pipeline import Pipeline
from jaxdistill.parallel.sharding import DEFAULT_RULES, Rules
from jaxdistill.run.config import Config, differ
from jaxdistill.run.parts import Parts
from jaxdistill.run.views import StageView
from jaxdistill.teachers.teacher import Teacher

Kind = Literal["teacher", "student", "control"]


class StageDefinition(NamedTuple):
    """The definition of a stage: which model to train, and the config to train it from.

    kind: the role of the model
    teacher: the name of the teacher; empty for a student or control
    config: the config of this stage
    origins: (path in this config, path in the run's config) pairs, so that errors name the path that the user wrote
    """

    kind: Kind
    teacher: str
    config: Config
    origins: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """Return the name of the stage in logs and results."""
        return f"teacher {self.teacher}" if self.kind == "teacher" else self.kind

    @property
    def folder(self) -> Path:
        """Return the folder of the stage, relative to the workdir."""
        return Path("teachers", self.teacher) if self.kind == "teacher" else Path(self.kind)

    def origin(self, path: str) -> str:
        """Translate a path of this stage's config to the path of the run's config that set it."""
        for stage_path, run_path in self.origins:
            if path == stage_path or path.startswith(f"{stage_path}."):
                return run_path + path.removeprefix(stage_path)
        return path

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Re-raise errors in the stage's config with the path of the run's config that caused them."""
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
    """The settings of a stage's training loop.

    steps: optimiser steps
    seed: of initialisation and data order
    evaluate_every: steps between evaluations
    evaluate_rows: rows of an evaluation batch
    layers: (student layer, teacher layer) pairs whose CKA is measured
    backend: "jit" or "pmap"
    rules: sharding rules of the student's parameters
    logging: the section `logging` of the config
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
    """A resolved stage of a run.

    definition: kind, name, folder and config
    settings: settings of the training loop
    data: the data pipeline
    shapes: shapes of the batches, by stream, with the fields that teachers add
    parts: student, teachers, objective and step
    view: the values that the rules of this stage check
    """

    definition: StageDefinition
    settings: Settings
    data: Pipeline
    shapes: Mapping[str, Shapes]
    parts: Parts
    view: StageView

    @property
    def kind(self) -> Kind:
        """Return the role of the model."""
        return self.definition.kind

    @property
    def name(self) -> str:
        """Return the name of the stage in logs and results."""
        return self.definition.name

    @property
    def teachers(self) -> Mapping[str, Teacher]:
        """Return the teachers of this stage, by name."""
        return {teacher.name: teacher for teacher in self.parts.teachers}


def plan_stages(config: Config) -> Iterator[StageDefinition]:
    """Yield the stages of a run, in order. Only the student uses the step of the config; the others use `offline()`."""
    roles = {role: entry for role, entry in config.roles.to_dict().items() if role in ("student", "fusion", "terms")}
    plain = {"step": "offline()", "roles": roles, "teachers": {}, "objective": config.task.to_dict()}
    for number, (name, teacher) in enumerate(config.teachers.items()):
        if teacher.checkpoint or not teacher.steps:
            continue
        stage_config = differ(
            config,
            **plain,
            student={"model": teacher.model, "rules": teacher.rules},
            steps=teacher.steps,
            rate=teacher.rate or config.rate,
            seed=config.seed + number + 1,  # teachers of the same architecture must start from different values
            data={"augment": teacher.augment, "select": "", "order": ""},
        )
        origins = [("student", f"teachers.{name}"), ("objective", "task"), ("data.augment", f"teachers.{name}.augment")]
        if teacher.rate:
            origins.append(("rate", f"teachers.{name}.rate"))
        yield StageDefinition("teacher", name, stage_config, tuple(origins))
    yield StageDefinition("student", "", config)
    if config.control and config.teachers:
        yield StageDefinition("control", "", differ(config, **plain), (("objective", "task"),))


def settings(config: Config) -> Settings:
    """Read the settings of the training loop from a stage's config."""
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
