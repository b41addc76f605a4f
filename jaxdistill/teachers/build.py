"""Build a teacher from its section of a config: its network, then its options in order."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jaxdistill.models.build import build_model
from jaxdistill.parallel.sharding import Rules
from jaxdistill.teachers import cache, classes, gradients, own_tokenizer, quantized, submesh
from jaxdistill.teachers.option import Context, Lacks, Option
from jaxdistill.teachers.teacher import Teacher

# in the order in which `build` applies them
OPTIONS: tuple[Option, ...] = (
    classes.OPTION,
    gradients.OPTION,
    quantized.OPTION,
    own_tokenizer.OPTION,
    submesh.OPTION,
    cache.OPTION,
)


class TeacherConfig(NamedTuple):
    """The section `teachers.NAME` of a config.

    options: the values of all options that are set, by key
    seed: of the initial values, if the teacher is trained in this run
    dtype: of the network's computations
    """

    name: str
    model: str
    checkpoint: str = ""
    steps: int = 0
    rules: Rules = ()
    options: Mapping[str, Any] = {}
    seed: int = 0
    dtype: str = "float32"

    @property
    def path(self) -> str:
        """The path of the section in the config."""
        return f"teachers.{self.name}"

    @property
    def trained_here(self) -> bool:
        """True if a stage of the run trains the teacher before the student."""
        return bool(self.steps) and not self.checkpoint

    def set_options(self) -> list[tuple[Option, Any]]:
        """Return the options that are set, with their values, in the order of `OPTIONS`."""
        return [(option, self.options[option.key]) for option in OPTIONS if self.options.get(option.key)]

    def lacks(self, capability: str) -> tuple[str, str] | None:
        """Return the option that takes a capability from this teacher, and the reason; None if no option does.

        Args:
            capability: a key of `option.Lacks`.
        """
        for option, value in self.set_options():
            lacks: Lacks = option.lacks(value)
            if capability in lacks:
                return option.key, lacks[capability]
        return None

    def devices(self) -> int:
        """Return the number of devices that are reserved for the teacher."""
        return sum(option.devices(value, f"{self.path}.{option.key}") for option, value in self.set_options())

    def check(self) -> None:
        """Check the spec strings of model and options, without any data.

        Raises:
            ConfigError: a name or an argument is wrong.
        """
        build_model(self.model, f"{self.path}.model", self.dtype)
        for option, value in self.set_options():
            option.check(value, f"{self.path}.{option.key}")


def build(config: TeacherConfig, context: Context, live: bool = False) -> Teacher:
    """Build a teacher.

    Args:
        config: the teacher's section of the config.
        context: the data, mesh and settings that options may read.
        live: leave out the options that change how outputs reach the student, as for writing a cache.

    Raises:
        ConfigError: with the config path, the value and the cure.
    """
    teacher = Teacher(
        name=config.name,
        spec=config.model,
        network=build_model(config.model, f"{config.path}.model", config.dtype),
        mesh=context.mesh,
        rules=config.rules,
        checkpoint=config.checkpoint,
        steps=config.steps,
        seed=config.seed,
        dtype=config.dtype,
        options={option.key: value for option, value in config.set_options() if not option.delivers},
    )
    gradient_option = {gradients.OPTION.key: context.needs} if context.needs and not live else {}
    values = {**config.options, **gradient_option}
    for option in OPTIONS:
        if values.get(option.key) and not (live and option.delivers):
            teacher = option.apply(teacher, values[option.key], context)
    return teacher


def allocate_devices(
    configs: Mapping[str, TeacherConfig], devices: tuple[jax.Device, ...]
) -> dict[str, tuple[jax.Device, ...]]:
    """Assign each teacher its own devices, from the end of `devices`. The key "" has the rest, for the student.

    A rule has checked that some are left (`run/rules/devices.py`).
    """
    remaining, by_teacher = devices, {}
    for name, config in configs.items():
        count = config.devices()
        by_teacher[name], remaining = remaining[len(remaining) - count :], remaining[: len(remaining) - count]
    return {**by_teacher, "": remaining}
