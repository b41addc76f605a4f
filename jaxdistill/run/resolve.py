"""Resolve a config to values: data, mesh, teachers and stages. Nothing is compiled.

Every command starts from `resolve`. Each part is built on first access, and the rules for this part (`validate.py`) are
checked then, so that `jaxdistill vocabulary`, for example, does not need the weights of the student.
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
from jaxdistill.core.interfaces import Fusion
from jaxdistill.core.schedules import Horizon
from jaxdistill.core.types import Shapes
from jaxdistill.data.pipeline import Pipeline
from jaxdistill.parallel.mesh import build_mesh
from jaxdistill.run.parts import Components, build_components, build_parts
from jaxdistill.run.pipelines import build_pipeline
from jaxdistill.run.rules.devices import student_mesh
from jaxdistill.run.stages import Stage, StageDefinition, plan_stages, settings
from jaxdistill.run.validate import check
from jaxdistill.run.views import ConfigView, DataView, StageConfigView, StageView
from jaxdistill.teachers.build import OPTIONS, TeacherConfig, allocate_devices, build
from jaxdistill.teachers.option import Context
from jaxdistill.teachers.teacher import Teacher


@dataclass(frozen=True)
class Resolved:
    """The values that a config describes; see `resolve`.

    Args:
        config: config of the run
        devices: devices that the run may use
    """

    config: ConfigDict
    devices: tuple[jax.Device, ...]

    @cached_property
    def teacher_configs(self) -> Mapping[str, TeacherConfig]:
        """Return the sections `teachers.NAME`, by name, after checking the rules about devices and batches."""
        config, keys = self.config, [option.key for option in OPTIONS]
        teacher_configs = {
            name: TeacherConfig(
                name,
                section.model,
                section.checkpoint,
                section.steps,
                section.rules,
                {key: section[key] for key in keys if section.get(key)},
                config.seed + number + 1,  # the seed of the stage that trains it; differs between teachers
                config.dtype,
            )
            for number, (name, section) in enumerate(config.teachers.items())
        }
        check("text", ConfigView(config, teacher_configs, len(self.devices)))
        return MappingProxyType(teacher_configs)

    @cached_property
    def definitions(self) -> tuple[StageDefinition, ...]:
        """Return the stage definitions, in order, after checking their spec strings."""
        stages = tuple(plan_stages(self.config))
        for stage in stages:
            with stage.reporting():
                _ = self._components(stage)
        return stages

    def _components(self, stage: StageDefinition) -> Components:
        """Build and check the components of a stage. The length of an epoch, not known yet, is set to the whole run."""
        config, teacher_configs = stage.config, self.teacher_configs if stage.kind == "student" else {}
        tokens = registry.tokenizations.build(config.data.tokens, "data.tokens") if config.data.tokens else None
        components = build_components(config, Horizon(config.steps, config.steps), tokens)
        check("stage text", StageConfigView(config, teacher_configs, components))
        return components

    @cached_property
    def data(self) -> Pipeline:
        """Return the data pipeline of the student's stage."""
        pipeline = build_pipeline(self.config)
        check("data", DataView(self.config, pipeline))
        return pipeline

    @cached_property
    def mesh(self) -> Mesh:
        """Return the student's mesh."""
        teacher_devices = sum(section.devices() for section in self.teacher_configs.values())
        return build_mesh(student_mesh(self.config, teacher_devices, len(self.devices)), self.devices)

    @cached_property
    def teachers(self) -> Mapping[str, Teacher]:
        """Return the teachers, by name, with all of their options applied."""
        (student,) = (stage for stage in self.definitions if stage.kind == "student")
        needs, devices = self._components(student).needs, allocate_devices(self.teacher_configs, self.devices)
        configs = self.teacher_configs.items()
        return MappingProxyType({name: build(config, self._context(devices[name], needs)) for name, config in configs})

    def live_teacher(self, name: str, alone: bool = False) -> Teacher:
        """Build a teacher that runs its network, ignoring the options `cache` and `placement`.

        Args:
            name: name of the teacher.
            alone: True: place it on one device; False: on the student's mesh.

        Raises:
            ConfigError: there is no teacher of this name.
        """
        if name not in self.config.teachers:
            raise ConfigError("teachers", f"there is no teacher {name!r}. {suggest(name, self.config.teachers)}")
        context = self._context()._replace(mesh=build_mesh((1, 1, 1)) if alone else self.mesh)
        return build(self.teacher_configs[name], context, live=True)

    def _context(self, devices: tuple[jax.Device, ...] = (), needs: frozenset[str] = frozenset()) -> Context:
        config = self.config
        return Context(self.data, self.mesh, devices, config.chunks, config.steps, needs)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Return the stages, in order, each checked on shapes."""
        return tuple(
            self.student if definition.kind == "student" else self._stage(definition) for definition in self.definitions
        )

    def _stage(self, definition: StageDefinition) -> Stage:
        _ = self.data  # checks the rules about data before those about the stage
        with definition.reporting():
            return self._checked_stage(definition)

    def _checked_stage(self, definition: StageDefinition) -> Stage:
        config = definition.config
        teachers = self.teachers if definition.kind == "student" else {}
        teacher_configs = self.teacher_configs if definition.kind == "student" else {}
        data = self.data if definition.kind == "student" else build_pipeline(config, self.data)
        horizon = Horizon(config.steps, data.training_records() / config.batch_size)
        parts = build_parts(config, build_components(config, horizon, data.tokenization), teachers, horizon)
        shapes = {name: {**rows, **teacher_fields(teachers, name, rows)} for name, rows in data.shapes.items()}
        view = StageView(config, teacher_configs, data, shapes, parts, self.mesh)
        check("stage", view)
        return Stage(definition, settings(config), data, shapes, parts, view)

    @cached_property
    def student(self) -> Stage:
        """Return the student's stage."""
        return self._stage(next(definition for definition in self.definitions if definition.kind == "student"))

    @cached_property
    def reference(self) -> Fusion:
        """Return the fusion that evaluation compares models with: the student's, or `average()` if that is learned.

        A learned gate depends on the student that it was trained with. The control has no such gate, but student and
        control must be compared with the same fused teacher.
        """
        student = self.student
        return registry.fusions["average"]() if student.view.fusion_learns else student.parts.components.fusion

    def check_run(self) -> None:
        """Check the rules about the whole run."""
        check("run", self)

    def check_weights(self) -> None:
        """Check the files that models are loaded from."""
        check("weights", self)

    def check_workdir(self, workdir: Path) -> None:
        """Check the folder that the run writes to."""
        check("workdir", self, workdir)


def resolve(config: ConfigDict, devices: Sequence[jax.Device]) -> Resolved:
    """Resolve a config to values. Nothing is compiled.

    Args:
        config: a complete config, from `jaxdistill.make` or a config file.
        devices: devices that the run may use.

    Raises:
        ConfigError: the config breaks a rule; names the path, the value and the cure. Most rules are checked on first
            access to a part of the result.
    """
    return Resolved(config, tuple(devices))


def teacher_fields(teachers: Mapping[str, Teacher], stream: str, rows: Shapes) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of the fields that teachers add to the batches of a stream."""
    count = rows["mask"].shape[0]
    fields: dict[str, Any] = {}
    for teacher in teachers.values():
        fields |= teacher.fields(stream)
    return {name: jax.ShapeDtypeStruct((count, *shape), dtype) for name, (shape, dtype) in fields.items()}
