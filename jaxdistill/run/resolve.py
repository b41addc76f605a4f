"""Resolve a config to the objects that it describes: data, mesh, teachers and training stages. Nothing is compiled.

Every command starts from `resolve`. Each object is built on first access, and the rules about it (`validate.py`) are
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
from jaxdistill.models.abstract import embeds, has_pairs
from jaxdistill.parallel.mesh import build_mesh
from jaxdistill.run.cut_specs import with_sizes
from jaxdistill.run.fill import fill_placeholders, with_stand_ins
from jaxdistill.run.parts import Components, build_components, build_parts
from jaxdistill.run.pipelines import build_pipeline
from jaxdistill.run.stages import Stage, StageDefinition, plan_stages, settings
from jaxdistill.run.validate import check_rules
from jaxdistill.run.views import ConfigView, DataView, StageConfigView, StageView
from jaxdistill.teachers.build import OPTIONS, TeacherConfig, allocate_devices, build
from jaxdistill.teachers.option import Context
from jaxdistill.teachers.teacher import Teacher


@dataclass(frozen=True)
class Resolved:
    """The objects that a config describes: data, device mesh, teachers and training stages, each built on first access.

    A training stage trains one model of the run: a teacher, the student, or the control (the same student without a
    teacher). Building an object also checks the config keys that describe it, and may raise a `ConfigError`.

    Args:
        config: config of the run
        devices: devices that the run may use
    """

    config: ConfigDict
    devices: tuple[jax.Device, ...]

    @cached_property
    def teacher_configs(self) -> Mapping[str, TeacherConfig]:
        """Return the settings of each teacher, by name, after checking that mesh and batch sizes fit the devices."""
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
        check_rules("text", ConfigView(config, teacher_configs, len(self.devices)))
        return MappingProxyType(teacher_configs)

    @cached_property
    def definitions(self) -> tuple[StageDefinition, ...]:
        """Return the definitions of the training stages, in order: which model is trained, and with which config.

        The spec strings of these configs, such as "kd(temperature=4.0)", are checked first.
        """
        stages = tuple(plan_stages(with_sizes(self.config)))
        for stage in stages:
            with stage.reporting():
                _ = self._components(stage)
        return stages

    def _components(self, stage: StageDefinition) -> Components:
        """Build and check the loss terms, fusion, optimiser and schedules of a stage.

        The number of steps per epoch is not known before the data are described; here, the whole run is one epoch.
        """
        config, teacher_configs = stage.config, self.teacher_configs if stage.learns_from_teachers else {}
        tokens = registry.tokenizations.build(config.data.tokens, "data.tokens") if config.data.tokens else None
        components = build_components(config, Horizon(config.steps, config.steps), tokens)
        check_rules("stage text", StageConfigView(config, teacher_configs, components))
        return components

    @cached_property
    def data(self) -> Pipeline:
        """Return the data pipeline of the student's training, after checking that the data exist and fit the config."""
        pipeline = build_pipeline(self.config)
        check_rules("data", DataView(self.config, pipeline))
        return pipeline

    @cached_property
    def mesh(self) -> Mesh:
        """Return the student's device mesh, which leaves out the devices that are reserved for teachers."""
        view = ConfigView(self.config, self.teacher_configs, len(self.devices))
        return build_mesh(view.student_mesh(), self.devices)

    @cached_property
    def teachers(self) -> Mapping[str, Teacher]:
        """Return the teachers, by name, with their configured options, such as cached outputs or 8-bit weights."""
        (student,) = (stage for stage in self.definitions if stage.kind == "student")
        needs, devices = self._components(student).needs, allocate_devices(self.teacher_configs, self.devices)
        configs = self.teacher_configs.items()
        return MappingProxyType({name: build(config, self._context(devices[name], needs)) for name, config in configs})

    def live_teacher(self, name: str, alone: bool = False, plain: bool = False) -> Teacher:
        """Build a teacher that runs its own network, even if the config gives it stored outputs or separate devices.

        The options `cache` (stored outputs) and `placement` (separate devices) are left out.

        Args:
            name: name of the teacher in the config.
            alone: whether to place the teacher on one device, and not on the student's mesh.
            plain: whether to leave out the other options, too, such as 8-bit weights.

        Raises:
            ConfigError: there is no teacher of this name.
        """
        if name not in self.config.teachers:
            raise ConfigError("teachers", f"there is no teacher {name!r}. {suggest(name, self.config.teachers)}")
        context = self._context()._replace(mesh=build_mesh((1, 1, 1)) if alone else self.mesh)
        config = self.teacher_configs[name]
        return build(config._replace(options={}) if plain else config, context, live=True)

    def _context(self, devices: tuple[jax.Device, ...] = (), needs: frozenset[str] = frozenset()) -> Context:
        config = self.config
        return Context(self.data, self.mesh, devices, config.chunks, config.steps, needs)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Return the training stages (one for each model to train), in order, each checked with `jax.eval_shape`.

        The control (the same student without a teacher) is missing if `left_out` names it.
        """
        return tuple(
            self.student if definition.kind == "student" else self._stage(definition)
            for definition in self.definitions
            if definition.kind != "control" or not self.left_out
        )

    @cached_property
    def left_out(self) -> dict[str, str]:
        """Return the models that the config asks for but the run cannot train, as `{name: reason}`.

        Only the control (the student's network trained on labels alone) may be among them: if the records have no
        labels, or if the model has no classes.
        """
        for definition in self.definitions:
            if definition.kind == "control":
                if has_pairs(self.student.view.student):
                    return {}  # it learns from the pairs
                if embeds(self.student.parts.student, self.student.shapes["train"]):
                    return {"control": "it learns from labels alone, and a model without classes reads none"}
                for term, *_ in self._components(definition).terms.values():
                    stream = self.data.streams.get(term.stream)
                    if stream and "label" not in self.data.shapes[term.stream]:
                        return {
                            "control": f"it learns from labels alone, and the records of {stream.split!r} have none"
                        }
        return {}

    def _stage(self, definition: StageDefinition) -> Stage:
        _ = self.data  # checks the rules about data before those about the stage
        with definition.reporting():
            return self._checked_stage(definition)

    def _checked_stage(self, definition: StageDefinition) -> Stage:
        config = definition.config
        teachers = self.teachers if definition.learns_from_teachers else {}
        teacher_configs = self.teacher_configs if definition.learns_from_teachers else {}
        data = self.data if definition.learns_from_teachers else build_pipeline(config, self.data)
        horizon = Horizon(config.steps, data.count_training_records() / config.batch_size)
        parts = build_parts(config, build_components(config, horizon, data.tokenization), teachers, horizon)
        shapes = {name: {**rows, **teacher_fields(teachers, name, rows)} for name, rows in data.shapes.items()}
        view = StageView(config, teacher_configs, data, shapes, parts, self.mesh)
        check_rules("stage", view)
        return Stage(definition, settings(config), data, shapes, parts, view)

    @cached_property
    def student(self) -> Stage:
        """Return the training stage of the student: its parts, data and settings."""
        return self._stage(next(definition for definition in self.definitions if definition.kind == "student"))

    @cached_property
    def reference(self) -> Fusion:
        """Return the fusion that combines several teachers into one when evaluation compares a model with its teachers.

        It is the fusion of the student's training, or `average()` if that fusion has parameters, such as a learned
        gate. So student and control (the same student without a teacher) are compared with the same combined teacher.
        """
        student = self.student
        return registry.fusions["average"]() if student.view.fusion_learns else student.parts.components.fusion

    def check_run(self) -> None:
        """Check the rules that involve several parts of the run, such as the tokenizer and the models' embeddings.

        Raises:
            ConfigError: a rule is broken.
        """
        check_rules("run", self)

    def check_memory(self) -> None:
        """Require that the memory of a device suffices for each training stage, by a lower bound of its needs.

        Raises:
            ConfigError: a stage needs more memory than there is; the message has both numbers.
        """
        for stage in self.stages:
            with stage.definition.reporting():
                check_rules("stage to run", stage.view)

    def check_weights(self) -> None:
        """Require that pretrained weights and the checkpoints of teachers are intact and fit the configured networks.

        Raises:
            ConfigError: the files of a model are damaged, incomplete, or belong to another model.
        """
        check_rules("weights", self)

    def check_workdir(self, workdir: Path) -> None:
        """Require that the folder of the run is new, or holds a run that this config may resume.

        Raises:
            ConfigError: the folder belongs to another config, or has a checkpoint of a later step than the config's
                last.
        """
        check_rules("workdir", self, workdir)


def check_definitions(config: ConfigDict, devices: Sequence[jax.Device]) -> None:
    """Check the keys and spec strings of a config, without reading any data.

    Placeholders such as `{classes}`, which are filled in from the data, are replaced by arbitrary values for the check.

    Args:
        config: a complete config.
        devices: devices that the run may use.

    Raises:
        ConfigError: a key or a spec string is wrong.
    """
    _ = Resolved(with_stand_ins(config), tuple(devices)).definitions


def resolve(config: ConfigDict, devices: Sequence[jax.Device]) -> Resolved:
    """Return the objects that a config describes: data, device mesh, teachers and one training stage per trained model.

    Nothing is compiled. Placeholders in the config, such as `{classes}`, are filled in from the data. Each object is
    built and checked when it is first accessed: a wrong config then raises a `ConfigError`, which names the key, the
    value and the cure.

    Args:
        config: a complete config, from `jaxdistill.make` or a config file.
        devices: devices that the run may use.
    """
    if with_stand_ins(config) != config:
        check_definitions(config, devices)
    return Resolved(fill_placeholders(config), tuple(devices))


def teacher_fields(teachers: Mapping[str, Teacher], stream: str, rows: Shapes) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and dtypes of the fields that teachers add to a batch, such as cached logits, by field name.

    Args:
        teachers: the teachers, by name.
        stream: name of the source of batches, such as "train".
        rows: shapes of the batch without these fields, by field name.
    """
    count = rows["mask"].shape[0]
    fields: dict[str, Any] = {}
    for teacher in teachers.values():
        fields |= teacher.fields(stream)
    return {name: jax.ShapeDtypeStruct((count, *shape), dtype) for name, (shape, dtype) in fields.items()}
