"""The training stages of a run: first its untrained teachers, then the student, then the control.

The control is the student's network trained without teachers. Each stage trains one model from its own config, so that
one training loop serves all stages.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.types import Shapes
from jaxdistill.data.pipeline import Pipeline
from jaxdistill.evaluation.report.table import FLOATS
from jaxdistill.parallel.sharding import DEFAULT_RULES, Rules
from jaxdistill.run.config import Config, differ
from jaxdistill.run.parts import Parts
from jaxdistill.run.views import StageView
from jaxdistill.teachers.teacher import Teacher

Kind = Literal["teacher", "student", "floats", "control"]
NAMES = {"floats": FLOATS}  # names of kinds in tables, where they differ


class StageDefinition(NamedTuple):
    """The definition of a training stage: which model of the run is trained, and with which config.

    kind: "teacher", "student", "floats" (the same student, if it is trained in few bits, trained in floats), or
        "control" (the same student trained without a teacher)
    teacher: name of the teacher that is trained; empty for student and control
    config: config of this training; its section `student` describes the model to train, even if this is a teacher
    origins: pairs (key in `config`, key in the run's config), such as ("student", "teachers.big"): error
        messages name the second key
    """

    kind: Kind
    teacher: str
    config: Config
    origins: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """Return the name of the trained model in logs and results, such as "teacher NAME" or "student"."""
        return f"teacher {self.teacher}" if self.kind == "teacher" else NAMES.get(self.kind, self.kind)

    @property
    def learns_from_teachers(self) -> bool:
        """Return True if the model is trained with the teachers of the run: the student, also in floats."""
        return self.kind in ("student", "floats")

    @property
    def folder(self) -> Path:
        """Return the folder for checkpoints and logs of this training, relative to the folder of the run."""
        return Path("teachers", self.teacher) if self.kind == "teacher" else Path(self.kind)

    def origin(self, path: str) -> str:
        """Translate a key of this training's config ("student.model") to the run's config ("teachers.big.model")."""
        for stage_path, run_path in self.origins:
            if path == stage_path or path.startswith(f"{stage_path}."):
                return run_path + path.removeprefix(stage_path)
        return path

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Return a context manager that translates the key in a `ConfigError` to the run's config, by `origin`."""
        try:
            yield
        except ConfigError as error:
            raise ConfigError(self.origin(error.path), error.message) from None


class Logging(NamedTuple):
    """The section `logging` of a config.

    every: number of training steps between two lines of the log
    tensorboard: True if TensorBoard events are written
    wandb: name of the Weights & Biases project, or '' if it is not used
    trace: number of training steps of the student to profile; 0 means none
    compilation_cache: folder that keeps compiled programs between runs, or '' if they are not kept
    """

    every: int
    tensorboard: bool
    wandb: str
    trace: int
    compilation_cache: str


class Settings(NamedTuple):
    """The settings of a training loop.

    steps: number of optimiser steps
    seed: random seed of initial values, data order and augmentation
    evaluate_every: number of steps between two evaluations; a checkpoint is written after each evaluation
    bucket: address in cloud storage below which the checkpoints are kept, or '' if they are kept in the workdir
    evaluate_rows: batch size of the evaluation
    layers: (student layer, teacher layer) pairs whose similarity (CKA) is measured in evaluation
    backend: "jit" or "pmap"
    rules: sharding rules of the parameters
    logging: the section `logging` of the config
    """

    steps: int
    seed: int
    evaluate_every: int
    bucket: str
    evaluate_rows: int
    layers: tuple[tuple[int, int], ...]
    backend: str
    rules: Rules
    logging: Logging


class Stage(NamedTuple):
    """The training of one model of a run (a teacher, the student or the control), with everything that it needs.

    The control is the same student trained without a teacher.

    definition: which model is trained, and with which config
    settings: settings of the training loop
    data: the data pipeline
    shapes: shapes of the batches with the fields that teachers add, by stream (source of batches, such as "train")
    parts: the model to train, its teachers, objective and training algorithm
    view: the same values in the form that the rules in `rules/stage.py` check
    """

    definition: StageDefinition
    settings: Settings
    data: Pipeline
    shapes: Mapping[str, Shapes]
    parts: Parts
    view: StageView

    @property
    def kind(self) -> Kind:
        """Return which model is trained: "teacher", "student", "floats" or "control", see `StageDefinition`."""
        return self.definition.kind

    @property
    def name(self) -> str:
        """Return the name of the trained model in logs and results, such as "teacher NAME", "student" or "control"."""
        return self.definition.name

    @property
    def teachers(self) -> Mapping[str, Teacher]:
        """Return the teachers that the model learns from, by name; the dict is empty if it is trained without one."""
        return {teacher.name: teacher for teacher in self.parts.teachers}


def plan_stages(config: Config) -> Iterator[StageDefinition]:
    """Yield the definitions of a run's training stages, in order: the teachers to train, the student, the controls.

    One control is the same student trained without a teacher. If the student gets quantisation-aware training, another
    control is the same student trained in floats. The student is trained by the algorithm in the config key `step`;
    models without a teacher are trained by `offline()`, which is then supervised training.
    """
    roles = {role: entry for role, entry in config.roles.to_dict().items() if role in ("student", "fusion", "terms")}
    plain = {"step": "offline()", "roles": roles, "teachers": {}, "objective": config.task.to_dict()}
    for number, (name, teacher) in enumerate(config.teachers.items()):
        if teacher.checkpoint or not teacher.steps:
            continue
        stage_config = differ(
            config,
            **plain,
            student={"model": teacher.model, "rules": teacher.rules, "quantized": "", "masks": ""},
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
    if config.control and config.student.quantized:
        yield StageDefinition("floats", "", differ(config, student={"quantized": ""}))
    if config.control and config.teachers:
        yield StageDefinition("control", "", differ(config, **plain), (("objective", "task"),))


def settings(config: Config) -> Settings:
    """Return the settings of the training loop that the config of a training sets."""
    evaluate, log = config.evaluate, config.logging
    return Settings(
        steps=config.steps,
        seed=config.seed,
        evaluate_every=evaluate.every,
        bucket=config.checkpoints.bucket,
        evaluate_rows=evaluate.batch_size,
        layers=evaluate.layers,
        backend=config.mesh.backend,
        rules=config.student.rules or DEFAULT_RULES,
        logging=Logging(log.every, log.tensorboard, log.wandb, log.trace, log.compilation_cache),
    )
