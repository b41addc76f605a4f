"""The stages of a run: one model to train in each, with a config of its own, so that one loop serves all of them."""

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


class Planned(NamedTuple):
    """A stage of a run by its config: one model to train.

    kind: what the model is
    teacher: its name, of a teacher
    config: of this stage
    origins: (path in this config, path in the run's) pairs, so that a mistake is reported where it was made
    """

    kind: Kind
    teacher: str
    config: Config
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


def plan_stages(config: Config) -> Iterator[Planned]:
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


def settings(config: Config) -> Settings:
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
