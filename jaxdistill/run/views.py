"""The values that the rules of `validate.py` check: a config, its data, a stage, and the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdistill.core.interfaces import Fusion
from jaxdistill.core.objective import WeightedTerm
from jaxdistill.core.types import NO_OUTPUTS, Outputs, Shapes, Signals
from jaxdistill.data.pipeline import Pipeline
from jaxdistill.models.abstract import abstract_outputs
from jaxdistill.run.config import Config
from jaxdistill.run.parts import Components, Parts
from jaxdistill.teachers.build import TeacherConfig
from jaxdistill.teachers.teacher import Teacher


class ConfigView(NamedTuple):
    """The config of a run, before anything is built from it.

    config: config of the run
    teacher_configs: the sections `teachers.NAME`, by name
    devices: number of devices
    """

    config: Config
    teacher_configs: Mapping[str, TeacherConfig]
    devices: int


class StageConfigView(NamedTuple):
    """The config of a stage, and the components that its spec strings name.

    config: config of the stage
    teacher_configs: the sections `teachers.NAME` of its teachers, by name
    components: terms, fusion, optimiser and schedules
    """

    config: Config
    teacher_configs: Mapping[str, TeacherConfig]
    components: Components


class DataView(NamedTuple):
    """The data of a run.

    config: config of the run
    data: data pipeline of the run
    """

    config: Config
    data: Pipeline


@dataclass(frozen=True)
class StageView:
    """A stage that is checked on shapes, without values.

    Args:
        config: config of the stage
        teacher_configs: the sections `teachers.NAME` of its teachers, by name
        data: data pipeline of the stage
        shapes: shapes of the batches, by stream, with the fields that teachers add
        parts: student, teachers, objective and step
        mesh: the student's mesh; this machine may lack its devices
    """

    config: Config
    teacher_configs: Mapping[str, TeacherConfig]
    data: Pipeline
    shapes: Mapping[str, Shapes]
    parts: Parts
    mesh: Mesh

    @cached_property
    def signals(self) -> dict[str, Any]:
        """Return the input of a term as shapes, for each stream, including streams that the step generates."""
        rows = {**self.shapes, **dict.fromkeys(self.parts.step.own, self.shapes["train"])}
        return {stream: self._signals(shapes) for stream, shapes in rows.items()}

    def _signals(self, rows: Shapes) -> Any:
        student, variables = abstract_outputs(self.parts.student, "student.model", rows)
        teacher_shapes = [
            abstract_outputs(teacher.model, f"{teacher.path}.model", rows) for teacher in self.parts.teachers
        ]
        params = {"student": variables.params, "teachers": tuple(values.params for _, values in teacher_shapes)}
        scalar, step = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
        teachers: Any = tuple(out for out, _ in teacher_shapes)
        return Signals(student, teachers, NO_OUTPUTS, rows, rows["mask"], step, scalar, params)  # type: ignore[arg-type]

    @property
    def student(self) -> Outputs:
        """Return the shapes of the student's outputs."""
        return self.signals["train"].student

    @property
    def terms(self) -> Mapping[str, WeightedTerm]:
        """Return the terms of the objective, by name."""
        return self.parts.components.terms

    @property
    def fusion_learns(self) -> bool:
        """Return True if the fusion has parameters or state."""
        return bool(self.parts.teachers and variables_of(self.parts.components.fusion, self.signals["train"]))


def variables_of(fusion: Fusion, signals: Any) -> list[Any]:
    """Return the shapes of a fusion's parameters and state."""
    dense = replace(signals, teachers=tuple(jax.eval_shape(lambda o: o.dense(), o) for o in signals.teachers))
    return jax.tree.leaves(jax.eval_shape(fusion.init, jax.eval_shape(lambda: jax.random.key(0)), dense))


@runtime_checkable
class RunView(Protocol):
    """A resolved run: `resolve.Resolved`."""

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
