"""The values that the rules of `validate.py` check: a config, its data, a stage, and the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdistill.core.errors import ConfigError, message_of
from jaxdistill.core.interfaces import Fusion
from jaxdistill.core.objective import WeightedTerm
from jaxdistill.core.types import NO_OUTPUTS, Outputs, Shapes, Signals, TrainState, Variables
from jaxdistill.data.pipeline import Pipeline
from jaxdistill.models.abstract import abstract_outputs
from jaxdistill.parallel.mesh import mesh_shape
from jaxdistill.run.config import Config
from jaxdistill.run.parts import Components, Parts
from jaxdistill.teachers.build import TeacherConfig
from jaxdistill.teachers.teacher import Teacher

KEY = jax.eval_shape(lambda: jax.random.key(0))  # shape and dtype of a PRNG key


class ConfigView(NamedTuple):
    """The values that the rules about devices check: the config of a run, before anything is built from it.

    config: config of the run
    teacher_configs: the sections `teachers.NAME` of the config, by teacher name
    devices: number of devices that the run may use
    """

    config: Config
    teacher_configs: Mapping[str, TeacherConfig]
    devices: int

    def student_mesh(self) -> tuple[int, int, int]:
        """Compute the sizes of the student's device mesh, `(data, fsdp, tensor)`, from the section `mesh`.

        A size of -1 takes all devices that remain. Devices that are reserved for teachers are left out.

        Raises:
            ConfigError: the sizes do not fit the number of devices that are left for the student.
        """
        mesh, reserved = self.config.mesh, sum(teacher.devices() for teacher in self.teacher_configs.values())
        try:
            return mesh_shape(mesh.data, mesh.fsdp, mesh.tensor, self.devices - reserved)
        except ValueError as error:
            reason = f" ({reserved} of {self.devices} are reserved for teachers)" if reserved else ""
            raise ConfigError("mesh", f"{error}{reason}.") from None


class StageConfigView(NamedTuple):
    """The values that the rules about spec strings check: the config of the training of one model.

    A spec string is a name with arguments, such as "kd(temperature=4.0)".

    config: config of this training
    teacher_configs: the sections `teachers.NAME` of the teachers that the model learns from, by teacher name
    components: loss terms, fusion of teachers, optimiser and schedules, built without data or models
    """

    config: Config
    teacher_configs: Mapping[str, TeacherConfig]
    components: Components


class DataView(NamedTuple):
    """The values that the rules about data check: the config and the data pipeline of a run.

    config: config of the run
    data: data pipeline of the run
    """

    config: Config
    data: Pipeline


@dataclass(frozen=True)
class StageView:
    """The values that the rules about the training of one model check: shapes of arrays, but no arrays.

    Args:
        config: config of this training
        teacher_configs: the sections `teachers.NAME` of the teachers that the model learns from, by teacher name
        data: data pipeline of this training
        shapes: shapes of the batches with the fields that teachers add, by stream (source of batches, such as "train")
        parts: the model to train (here called the student), its teachers, objective and training algorithm
        mesh: the student's device mesh; its devices need not exist on this machine
    """

    config: Config
    teacher_configs: Mapping[str, TeacherConfig]
    data: Pipeline
    shapes: Mapping[str, Shapes]
    parts: Parts
    mesh: Mesh

    @cached_property
    def signals(self) -> dict[str, Any]:
        """Return the inputs of loss terms (outputs of all models, and the batch) as shapes, by stream.

        A stream is a named source of batches. Streams that the training algorithm generates itself, such as texts of
        the student, are included.
        """
        rows = {**self.shapes, **dict.fromkeys(self.parts.step.generated_streams, self.shapes["train"])}
        return {stream: self._signals(shapes) for stream, shapes in rows.items()}

    def _signals(self, rows: Shapes) -> Any:
        student, variables = abstract_outputs(self.parts.student, "student.model", rows, pairs=True)
        teacher_shapes = [
            abstract_outputs(teacher.model, f"{teacher.path}.model", rows, pairs=True)
            for teacher in self.parts.teachers
        ]
        params = {"student": variables.params, "teachers": tuple(values.params for _, values in teacher_shapes)}
        scalar, step = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
        teachers: Any = tuple(out for out, _ in teacher_shapes)
        return Signals(student, teachers, NO_OUTPUTS, rows, rows["mask"], step, scalar, params)  # type: ignore[arg-type]

    @cached_property
    def teacher_variables(self) -> tuple[Variables, ...]:
        """Return the variables of all teachers, with shapes in place of arrays."""
        rows = self.shapes["train"]
        return tuple(Variables(*jax.eval_shape(teacher.model.init, KEY, rows)) for teacher in self.parts.teachers)

    @property
    def step_batch(self) -> dict[str, Shapes]:
        """Return the shapes of the batch that the training algorithm takes, by stream (named source of batches)."""
        return {stream: self.shapes[stream] for stream in self.parts.step.streams}

    @cached_property
    def train_state(self) -> TrainState:
        """Return the state of the training algorithm before the first step, with shapes in place of arrays.

        Raises:
            ConfigError: the training algorithm cannot be initialised.
        """
        try:
            return jax.eval_shape(self.parts.step.init, KEY, self.teacher_variables, self.step_batch)
        except ConfigError:  # the message names its config key itself
            raise
        except (ValueError, TypeError) as error:
            raise ConfigError("step", message_of(error)) from error

    def initialised_here(self, name: str) -> bool:
        """Return True if a teacher is initialised in this run, because it is only trained together with the student.

        This is False for a teacher with a checkpoint, with cached outputs, or with a training of its own before the
        student.

        Args:
            name: name of the teacher.
        """
        teacher = self.teacher_configs[name]
        trained = list(self.teacher_configs).index(name) in self.parts.step.trained_teachers
        return trained and not (teacher.checkpoint or teacher.steps or teacher.cache)

    @property
    def student(self) -> Outputs:
        """Return the outputs of the trained model on a training batch, with shapes in place of arrays."""
        return self.signals["train"].student

    @property
    def terms(self) -> Mapping[str, WeightedTerm]:
        """Return the loss terms of the objective with their weights, by name."""
        return self.parts.components.terms

    @property
    def fusion_learns(self) -> bool:
        """Return True if the fusion, which combines several teachers into one, has parameters or state."""
        return bool(self.parts.teachers and variables_of(self.parts.components.fusion, self.signals["train"]))


def variables_of(fusion: Fusion, signals: Any) -> list[Any]:
    """Return the shapes of a fusion's parameters and state as a flat list, which is empty if the fusion has none.

    Args:
        fusion: the rule that combines several teachers into one.
        signals: outputs of student and teachers, and the batch, with shapes in place of arrays.
    """
    dense = replace(signals, teachers=tuple(jax.eval_shape(lambda o: o.dense(), o) for o in signals.teachers))
    return jax.tree.leaves(jax.eval_shape(fusion.init, KEY, dense))


@runtime_checkable
class RunView(Protocol):
    """The values that the rules about a whole run check; the class `Resolved` in `resolve.py` has these properties."""

    @property
    def config(self) -> Config: ...  # noqa: D102
    @property
    def teacher_configs(self) -> Mapping[str, TeacherConfig]: ...  # noqa: D102
    @property
    def data(self) -> Pipeline: ...  # noqa: D102
    @property
    def mesh(self) -> Mesh: ...  # noqa: D102
    @property
    def teachers(self) -> Mapping[str, Teacher]: ...  # noqa: D102
    @property
    def definitions(self) -> Sequence[Any]: ...  # noqa: D102
    @property
    def student(self) -> Any: ...  # noqa: D102
    @property
    def stages(self) -> Sequence[Any]: ...  # noqa: D102
