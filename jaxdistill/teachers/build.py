"""A teacher from its section of a config: its network, and its options one after the other."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jaxdistill.core.errors import ConfigError
from jaxdistill.models.build import build_model
from jaxdistill.parallel.sharding import Rules
from jaxdistill.teachers import cache, classes, gradients, quantized, reads, submesh
from jaxdistill.teachers.option import Context, Lacks, Option
from jaxdistill.teachers.teacher import Teacher

# in the order in which they are applied
OPTIONS: tuple[Option, ...] = (
    classes.OPTION,
    gradients.OPTION,
    quantized.OPTION,
    reads.OPTION,
    submesh.OPTION,
    cache.OPTION,
)


class Entry(NamedTuple):
    """A section `teachers.NAME` of a config.

    options: the values of all options that are set, by key
    seed: of its first values, if it is trained in this run
    dtype: that networks compute in
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
        """Where the config has it."""
        return f"teachers.{self.name}"

    @property
    def trained_here(self) -> bool:
        """Whether a stage of the run trains it before the student."""
        return bool(self.steps) and not self.checkpoint

    def set_options(self) -> list[tuple[Option, Any]]:
        """The options that are set, with their values, in the order in which they are applied."""
        return [(option, self.options[option.key]) for option in OPTIONS if self.options.get(option.key)]

    def lacks(self, capability: str) -> tuple[str, str] | None:
        """The option that takes something from this teacher, and why; None: it can do that. See `option.Lacks`."""
        for option, value in self.set_options():
            found: Lacks = option.lacks(value)
            if capability in found:
                return option.key, found[capability]
        return None

    def devices(self) -> int:
        """How many devices it has for itself."""
        return sum(option.devices(value, f"{self.path}.{option.key}") for option, value in self.set_options())

    def check(self) -> None:
        """Checks the text of model and options; nothing is built of data.

        Raises:
            ConfigError: a name or argument is wrong.
        """
        build_model(self.model, f"{self.path}.model", self.dtype)
        for option, value in self.set_options():
            option.check(value, f"{self.path}.{option.key}")


def build(entry: Entry, context: Context, live: bool = False) -> Teacher:
    """Builds a teacher.

    Args:
        entry: its section of the config.
        context: what its options may read.
        live: without the options that change how its outputs reach the student, as they are computed to be written.

    Raises:
        ConfigError: naming the path, the value and the cure.
    """
    teacher = Teacher(
        name=entry.name,
        spec=entry.model,
        network=build_model(entry.model, f"{entry.path}.model", entry.dtype),
        mesh=context.mesh,
        rules=entry.rules,
        checkpoint=entry.checkpoint,
        steps=entry.steps,
        seed=entry.seed,
        dtype=entry.dtype,
        options={option.key: value for option, value in entry.set_options() if not option.delivers},
    )
    needed = {gradients.OPTION.key: context.needs} if context.needs and not live else {}
    values = {**entry.options, **needed}
    for option in OPTIONS:
        if values.get(option.key) and not (live and option.delivers):
            teacher = option.apply(teacher, values[option.key], context)
    return teacher


def allocated(entries: Mapping[str, Entry], devices: tuple[jax.Device, ...]) -> dict[str, tuple[jax.Device, ...]]:
    """The devices that each teacher has for itself, taken from the end of all; the rest are under "".

    Raises:
        ConfigError: none would be left for the student.
    """
    free, found = devices, {}
    for name, entry in entries.items():
        count = entry.devices()
        if count and count >= len(free):
            why = f"{count} devices of {len(free)} leave none for the student"
            raise ConfigError(f"{entry.path}.{submesh.KEY}", f"{why}. Lower devices.")
        found[name], free = free[len(free) - count :], free[: len(free) - count]
    return {**found, "": free}
