"""Build a teacher from its section of a config: first the network, then its options (quantised, cached, ...)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jaxdistill.models.build import build_model
from jaxdistill.parallel.sharding import Rules
from jaxdistill.teachers import cache, classes, gradients, own_tokenizer, quantized, submesh
from jaxdistill.teachers.option import Capability, Context, Lacks, Option
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
    """The settings of one teacher, from the section `teachers.NAME` of a config.

    name: the teacher's name
    model: spec string of the network: a registered model with its arguments, such as "mlp(widths=(64,), classes=10)"
    checkpoint: "FOLDER", "FOLDER@best" or "FOLDER@STEP" of an earlier run; empty: none
    steps: number of training steps, if this run trains the teacher before the student; otherwise 0
    rules: sharding rules of the parameters; empty: the default rules
    options: values of the teacher's options by key, such as "cache"; an option with an empty value is not set
    seed: random seed of the initial values, if the teacher is trained in this run
    dtype: dtype of the network's computations
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
        """The key of this section in the config, such as `teachers.big`, for error messages."""
        return f"teachers.{self.name}"

    @property
    def trained_here(self) -> bool:
        """Return whether this run trains the teacher before the student: it has `steps`, and no checkpoint to load."""
        return bool(self.steps) and not self.checkpoint

    def set_options(self) -> list[tuple[Option, Any]]:
        """Return pairs (option, value) of the options that the config sets for this teacher, in order of `OPTIONS`."""
        return [(option, self.options[option.key]) for option in OPTIONS if self.options.get(option.key)]

    def lacks(self, capability: Capability) -> tuple[str, str] | None:
        """Return why a capability is missing: the first option of this teacher that excludes it, and the reason.

        Args:
            capability: name of the capability, such as "training" (this run can train the teacher) or "gradients"
                (losses can read gradients of the teacher's outputs).

        Returns:
            The key of the option and the reason, for an error message; None if the teacher has the capability.
        """
        for option, value in self.set_options():
            lacks: Lacks = option.lacks(value)
            if capability in lacks:
                return option.key, lacks[capability]
        return None

    def devices(self) -> int:
        """Return the number of devices that the teacher's options reserve for the teacher alone."""
        return sum(option.devices(value, f"{self.path}.{option.key}") for option, value in self.set_options())

    def check_specs(self) -> None:
        """Check the spec strings of the model and of the options, without reading any data.

        Raises:
            ConfigError: a name or an argument in a spec string is wrong.
        """
        build_model(self.model, f"{self.path}.model", self.dtype)
        for option, value in self.set_options():
            option.check(value, f"{self.path}.{option.key}")


def build(config: TeacherConfig, context: Context, live: bool = False) -> Teacher:
    """Build a teacher from its section of the config: the network, changed by options such as "quantized" or "cache".

    Args:
        config: the teacher's section of the config.
        context: the data, mesh and settings of the run that options may read.
        live: True: leave out the options "cache" and "placement" (own devices), which only change how the teacher's
            outputs reach the student. A cache is computed with the live teacher.

    Raises:
        ConfigError: a spec string or the value of an option is wrong; the message names the key of the config.
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
    """Assign devices to the teachers that reserve some, each device to at most one teacher, from the end of `devices`.

    The caller must have checked that some devices are left for the student.

    Args:
        configs: settings of the teachers, by teacher name.
        devices: all devices of the run.

    Returns:
        The devices of each teacher by name, and the student's devices, which are all others, under the key "".
    """
    remaining, by_teacher = devices, {}
    for name, config in configs.items():
        count = config.devices()
        by_teacher[name], remaining = remaining[len(remaining) - count :], remaining[: len(remaining) - count]
    return {**by_teacher, "": remaining}
