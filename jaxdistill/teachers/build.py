"""Build a teacher from its section of a config: first the network, then its options (quantised, cached, ...)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jaxdistill.models.build import build_model
from jaxdistill.parallel.sharding import Rules
from jaxdistill.teachers import cache, classes, gradients, own_tokenizer, quantized, submesh
from jaxdistill.teachers.codec import Encoding
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
    checkpoint: "FOLDER", "FOLDER@best" or "FOLDER@STEP" of an earlier run; empty if no checkpoint is loaded
    steps: number of training steps, if this run trains the teacher before the student; otherwise 0
    rules: sharding rules of the parameters; if empty, the default rules are used
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
        """Return the config key of this teacher's section, such as `teachers.big`, for error messages."""
        return f"teachers.{self.name}"

    @property
    def trained_here(self) -> bool:
        """Return whether this run trains the teacher before the student: `steps` is set, and no checkpoint is."""
        return bool(self.steps) and not self.checkpoint

    @property
    def cache(self) -> str:
        """Return the spec string of the cache with the teacher's stored outputs; it is empty if there is none."""
        return self.options.get(cache.OPTION.key, "")

    def encodings(self) -> list[tuple[str, Encoding]]:
        """Return how this teacher's outputs are stored or sent, `[(config path of the option, Encoding)]`.

        The list is empty if the training step runs the teacher itself.
        """
        placement, encodings = self.options.get(submesh.OPTION.key, ""), []
        if self.cache:
            path = f"{self.path}.{cache.OPTION.key}"
            encodings.append((path, cache.parse_encoding(self.cache, path)))
        if placement:
            path = f"{self.path}.{submesh.OPTION.key}"
            encodings.append((path, submesh.parse_submesh(placement, path).encoding))
        return encodings

    @property
    def class_map(self) -> tuple[int, ...]:
        """Return the teacher's class for each class of the data; an empty tuple means that they are the same."""
        return self.options.get(classes.OPTION.key, ())

    @property
    def prefix(self) -> str:
        """Return the prefix of the batch fields that the teacher reads; it is empty if they are the student's."""
        return self.options.get(own_tokenizer.OPTION.key, "")

    def set_options(self) -> list[tuple[Option, Any]]:
        """Return the options that are set for this teacher, as a list of pairs `(Option, value)` in a fixed order."""
        return [(option, self.options[option.key]) for option in OPTIONS if self.options.get(option.key)]

    def lacks(self, capability: Capability) -> tuple[str, str] | None:
        """Return which option takes a capability from this teacher, and why; None if the teacher has the capability.

        Args:
            capability: name of the capability, such as "training" (this run can train the teacher) or "gradients"
                (losses can read gradients of the teacher's outputs).

        Returns:
            `(key of the option, reason)` for an error message, from the first such option; or None.
        """
        for option, value in self.set_options():
            lacks: Lacks = option.lacks(value)
            if capability in lacks:
                return option.key, lacks[capability]
        return None

    def devices(self) -> int:
        """Return the number of devices that are reserved for this teacher alone, by options such as `placement`."""
        return sum(option.devices(value, f"{self.path}.{option.key}") for option, value in self.set_options())

    def check_specs(self) -> None:
        """Check the spec strings of the teacher's model and options, such as "mlp(widths=(64,))"; no data are read.

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
        context: the data, mesh and settings of the run, which the options read.
        live: if True, ignore the options "cache" and "placement" (own devices), which only change how the teacher's
            outputs reach the student. The outputs that a cache stores are computed with such a live teacher.

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
    """Divide the devices of a run between the student and those teachers that run on their own devices.

    Each teacher gets the number of devices that its config reserves, from the end of `devices`. No device has two
    models. The caller must have checked that some devices are left for the student.

    Args:
        configs: settings of the teachers, by teacher name.
        devices: all devices of the run.

    Returns:
        A dict: the devices of each teacher by teacher name, and all remaining devices, the student's, under the key "".
        A teacher that reserves none has an empty tuple.
    """
    remaining, by_teacher = devices, {}
    for name, config in configs.items():
        count = config.devices()
        by_teacher[name], remaining = remaining[len(remaining) - count :], remaining[: len(remaining) - count]
    return {**by_teacher, "": remaining}
