"""What the rules of `validate.py` look at: a config's text, its data, a stage, and the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdistill.core.objective import Weighted
from jaxdistill.core.types import NO_OUTPUTS, Fusion, Outputs, Shapes, Signals
from jaxdistill.data.pipeline import Pipeline
from jaxdistill.models.abstract import abstract_outputs
from jaxdistill.run.config import Config
from jaxdistill.run.parts import Named, Parts
from jaxdistill.teachers.build import Entry
from jaxdistill.teachers.teacher import Teacher


class Text(NamedTuple):
    """The text of a run's config.

    config: the run's
    entries: its teachers, by name
    devices: how many there are
    """

    config: Config
    entries: Mapping[str, Entry]
    devices: int


class StageText(NamedTuple):
    """The text of a stage's config, and what its spec strings name.

    config: the stage's
    entries: whom it learns from, by name
    named: terms, fusion, optimiser and schedules
    """

    config: Config
    entries: Mapping[str, Entry]
    named: Named


class DataView(NamedTuple):
    """The data of a run.

    config: the run's
    data: as it is resolved
    """

    config: Config
    data: Pipeline


@dataclass(frozen=True)
class StageView:
    """A stage on shapes alone.

    Args:
        config: the stage's
        entries: whom it learns from, by name
        data: that it reads
        shapes: of its batches, by stream, with the fields that teachers add
        parts: of the stage
        mesh: of its devices, which may be elsewhere
    """

    config: Config
    entries: Mapping[str, Entry]
    data: Pipeline
    shapes: Mapping[str, Shapes]
    parts: Parts
    mesh: Mesh

    @cached_property
    def signals(self) -> dict[str, Any]:
        """What a term would see of each stream, as shapes; streams that the step makes included."""
        rows = {**self.shapes, **dict.fromkeys(self.parts.step.own, self.shapes["train"])}
        return {stream: self._signals(shapes) for stream, shapes in rows.items()}

    def _signals(self, rows: Shapes) -> Any:
        seen, variables = abstract_outputs(self.parts.student, "student.model", rows)
        found = [abstract_outputs(teacher.model, f"{teacher.path}.model", rows) for teacher in self.parts.teachers]
        params = {"student": variables.params, "teachers": tuple(values.params for _, values in found)}
        scalar, step = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
        teachers: Any = tuple(out for out, _ in found)
        return Signals(seen, teachers, NO_OUTPUTS, rows, rows["mask"], step, scalar, params)  # type: ignore[arg-type]

    @property
    def student(self) -> Outputs:
        """Shapes of the student's outputs."""
        return self.signals["train"].student

    @property
    def terms(self) -> Mapping[str, Weighted]:
        """The terms of the objective."""
        return self.parts.named.terms

    @property
    def fusion_learns(self) -> bool:
        """Whether the fusion has parameters or state; else it is a fixed function of the teachers."""
        return bool(self.parts.teachers and variables_of(self.parts.named.fusion, self.signals["train"]))


def variables_of(fusion: Fusion, signals: Any) -> list[Any]:
    """Shapes of what a fusion learns or remembers."""
    dense = replace(signals, teachers=tuple(jax.eval_shape(lambda o: o.dense(), o) for o in signals.teachers))
    return jax.tree.leaves(jax.eval_shape(fusion.init, jax.eval_shape(lambda: jax.random.key(0)), dense))


class RunView(Protocol):
    """A whole run, resolved: `resolve.Resolved`."""

    @property
    def config(self) -> Config: ...  # noqa: D102
    @property
    def entries(self) -> Mapping[str, Entry]: ...  # noqa: D102
    @property
    def data(self) -> Pipeline: ...  # noqa: D102
    @property
    def mesh(self) -> Mesh: ...  # noqa: D102
    @property
    def teachers(self) -> Mapping[str, Teacher]: ...  # noqa: D102
    @property
    def planned(self) -> Sequence[Any]: ...  # noqa: D102
    @property
    def student(self) -> Any: ...  # noqa: D102
