"""A config becomes values, once: data, mesh, teachers and stages, checked and frozen; nothing is compiled.

Every command starts from `resolve`. Each part is resolved when it is first asked for, with the rules that it needs
(`validate.py`), so that a command which cuts a vocabulary does not need the weights of the student.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError, suggest
from jaxdistill.core.schedules import Horizon
from jaxdistill.core.types import Fusion, Shapes
from jaxdistill.data.pipeline import Pipeline
from jaxdistill.parallel.mesh import build_mesh
from jaxdistill.run.parts import Named, build_parts, name_parts
from jaxdistill.run.pipelines import build_pipeline
from jaxdistill.run.rules.devices import student_mesh
from jaxdistill.run.stages import Planned, Stage, plan_stages, settings
from jaxdistill.run.validate import check
from jaxdistill.run.views import DataView, StageText, StageView, Text
from jaxdistill.teachers.build import OPTIONS, Entry, allocated, build
from jaxdistill.teachers.option import Context
from jaxdistill.teachers.teacher import Teacher


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
        found = build_pipeline(self.config)
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
        """The stages, each checked on shapes."""
        return tuple(self.student if planned.kind == "student" else self._stage(planned) for planned in self.planned)

    def _stage(self, planned: Planned) -> Stage:
        _ = self.data  # names were checked before any data are looked at
        with planned.reporting():
            return self._checked_stage(planned)

    def _checked_stage(self, planned: Planned) -> Stage:
        config = planned.config
        teachers = self.teachers if planned.kind == "student" else {}
        entries = self.entries if planned.kind == "student" else {}
        data = self.data if planned.kind == "student" else build_pipeline(config, self.data)
        horizon = Horizon(config.steps, data.learned() / config.batch_size)
        parts = build_parts(config, name_parts(config, horizon, data.tokenization), teachers, horizon)
        shapes = {name: {**rows, **added(teachers, name, rows)} for name, rows in data.shapes.items()}
        view = StageView(config, entries, data, shapes, parts, self.mesh)
        check("stage", view)
        return Stage(planned, settings(config), data, shapes, parts, view)

    @cached_property
    def student(self) -> Stage:
        """The student's stage."""
        return self._stage(next(planned for planned in self.planned if planned.kind == "student"))

    @cached_property
    def reference(self) -> Fusion:
        """The fusion that students are measured beside: the student's, or the mean of probabilities where it learns.

        A gate reads the student that it was trained with; a control has none, and both are measured beside the same.
        """
        return registry.fusions["average"]() if self.student.view.fusion_learns else self.student.parts.named.fusion

    def check_run(self) -> None:
        """Checks how the student's stage is put together, and what it uses."""
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


def added(teachers: Mapping[str, Teacher], stream: str, rows: Shapes) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the fields that teachers add to the batches of a stream."""
    count = rows["mask"].shape[0]
    fields: dict[str, Any] = {}
    for teacher in teachers.values():
        fields |= teacher.fields(stream)
    return {name: jax.ShapeDtypeStruct((count, *shape), dtype) for name, (shape, dtype) in fields.items()}
