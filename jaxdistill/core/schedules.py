"""Schedules for the learning rate, loss weights and temperatures.

A registered schedule factory returns a function from the length of the training (`Horizon`) to a `Schedule`. So a
config can give times as fractions of the run or as epochs, and stays valid when the number of steps changes. A schedule
stores its least and greatest value, so that a negative temperature is refused before compilation.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import schedules
from jaxdistill.core.spec import Spec, out_of_range, parse
from jaxdistill.core.types import Array


class Horizon(NamedTuple):
    """The length of a training, by which schedules convert fractions and epochs to steps.

    steps: number of all steps
    epoch: number of steps in one pass over the data
    """

    steps: int
    epoch: float


StepNumber = Array | np.integer | int


@dataclass(frozen=True)
class Schedule:
    """A function from the step number to a value, such as the learning rate.

    curve: `(step number) -> value`
    low: least value during the training
    high: greatest value during the training
    """

    curve: Callable[[StepNumber], Array | float]
    low: float
    high: float

    def __call__(self, step: StepNumber) -> Array:
        """Return the value at a step, a scalar of JAX's default float dtype: float32, or float64 if 64 bits are on."""
        return jnp.asarray(self.curve(step), float)


Scalar = Schedule | float  # the type of a factory's argument that may be a number or a schedule
ScheduleOfHorizon = Callable[[Horizon], Schedule]


def as_schedule(value: Scalar) -> Schedule:
    """Convert a number to a constant schedule; return a schedule unchanged."""
    return value if isinstance(value, Schedule) else Schedule(lambda step: value, value, value)


def resolve(value: Any, horizon: Horizon, path: str) -> Schedule:
    """Build the schedule that a value of the config describes, such as 0.9, "0.9" or "cosine(start=0.9, end=0.1)".

    Args:
        value: a number, a number as text, or a spec string with the name and arguments of a registered schedule.
        horizon: the length of the training.
        path: key of the config with the value, such as `rate`, for error messages.

    Raises:
        ConfigError: the value is neither a finite number nor the spec string of a schedule.
    """
    if isinstance(value, str):
        value = _number_or_spec(value, path)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        if wrong := out_of_range(value):
            raise ConfigError(path, wrong)
        return as_schedule(float(value))
    if not isinstance(value, Spec):
        raise ConfigError(path, f"{value!r} is neither a finite number nor a schedule. {_known()}")
    try:
        return schedules.build(value, path)(horizon)
    except ArithmeticError as error:
        raise ConfigError(path, f"this schedule cannot be computed over {horizon.steps} steps ({error}).") from None


def _number_or_spec(text: str, path: str) -> float | Spec:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return parse(text, path)
    except ConfigError:
        if "(" in text:
            raise  # a spec was meant, not a number
        raise ConfigError(path, f"{text!r} is neither a number nor a schedule. {_known()}") from None


def _known() -> str:
    return f"Schedules: {', '.join(schedules)}."


def require_positive(name: str, schedule: Schedule) -> Schedule:
    """Return a schedule unchanged after checking that all its values are positive and finite.

    Args:
        name: name of the scheduled argument, for the error message.
        schedule: the schedule to check.

    Raises:
        ValueError: a value is zero, negative or infinite.
    """
    if not 0 < schedule.low <= schedule.high < math.inf:
        extreme = schedule.low if schedule.low <= 0 else schedule.high
        raise ValueError(f"{name} must stay above 0 and finite, but it reaches {extreme:g}")
    return schedule


def _progress(step: StepNumber, start: float, end: float) -> Array:
    """Return the completed fraction of the interval from step `start` to step `end`, 0 to 1."""
    return jnp.clip((step - start) / max(end - start, 1.0), 0.0, 1.0)


def _check_fractions(**values: float) -> None:
    for name, value in values.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} is a fraction of the run, between 0 and 1; got {value}")


@schedules.register
def constant(value: float) -> ScheduleOfHorizon:
    """Build a schedule that has the same value at every step."""
    return lambda horizon: as_schedule(value)


@schedules.register
def linear(start: float, end: float, begin: float = 0.0, until: float = 1.0) -> ScheduleOfHorizon:
    """Build a schedule that goes from `start` to `end` in a straight line, and is constant before and after it.

    Args:
        start: the value at the beginning of the line, and before.
        end: the value at the end of the line, and after.
        begin: where the line begins, as a fraction of all steps.
        until: where the line ends, as a fraction of all steps.
    """
    _check_fractions(begin=begin, until=until)
    if begin > until:
        raise ValueError(f"begin must not come after until; got begin={begin}, until={until}")

    def over(horizon: Horizon) -> Schedule:
        first, last = begin * horizon.steps, until * horizon.steps
        curve = lambda step: start + (end - start) * _progress(step, first, last)
        return Schedule(curve, min(start, end), max(start, end))

    return over


@schedules.register
def cosine(start: float, end: float = 0.0, warmup: float = 0.0) -> ScheduleOfHorizon:
    """Build the schedule `end + (start - end) * (1 + cos(pi * t)) / 2`, after a linear warmup.

    `t` goes from 0 at the end of the warmup to 1 at the end of the training (SGDR, Loshchilov 2017). The value in the
    warmup is `start * (step + 1) / warmup_steps`.

    Args:
        start: the value at the end of the warmup.
        end: the value at the end of the training.
        warmup: the length of the warmup, as a fraction of all steps.
    """
    _check_fractions(warmup=warmup)

    def over(horizon: Horizon) -> Schedule:
        rise = warmup * horizon.steps

        def curve(step: StepNumber) -> Array:
            fall = end + (start - end) * 0.5 * (1 + jnp.cos(jnp.pi * _progress(step, rise, horizon.steps)))
            # the first step already moves: 1/rise, not 0
            return jnp.where(step < rise, start * jnp.minimum((step + 1) / max(rise, 1.0), 1.0), fall)

        first = start / max(rise, 1.0)
        return Schedule(curve, min(start, end, first), max(start, end, first))

    return over


@schedules.register
def step(start: float, factor: float, every: float) -> ScheduleOfHorizon:
    """Build the step decay `start * factor ** floor(epoch / every)`, in which an epoch is one pass over the data.

    Args:
        start: the first value.
        factor: what the value is multiplied by at each decay.
        every: number of epochs between two decays, not necessarily an integer.
    """
    if every <= 0 or factor <= 0:
        raise ValueError(f"every and factor must be positive; got every={every}, factor={factor}")

    def over(horizon: Horizon) -> Schedule:
        # slightly shorter: compiled, a division by 41 is a product with 1/41, and 41 gives 0.99999994
        length = every * horizon.epoch * (1 - 1e-6)
        drops = lambda step: jnp.floor(step / length)
        last = start * factor ** int(horizon.steps / length)
        return Schedule(lambda step: start * factor ** drops(step), min(start, last), max(start, last))

    return over


@schedules.register
def phases(values: tuple[float, ...], at: tuple[float, ...]) -> ScheduleOfHorizon:
    """Build a piecewise constant schedule, to train in phases.

    Args:
        values: the value of each phase.
        at: where each phase but the first begins, as increasing fractions of all steps.
    """
    if len(values) != len(at) + 1:
        raise ValueError(f"{len(values)} values need {len(values) - 1} switching points in `at`; got {len(at)}")
    if list(at) != sorted(at):
        raise ValueError(f"the switching points must increase; got at={at}")
    _check_fractions(**{f"at[{i}]": point for i, point in enumerate(at)})

    def over(horizon: Horizon) -> Schedule:
        # whole numbers, so that no rounding of 0.55 * 100 moves a border by a step
        borders = jnp.asarray([math.ceil(round(point * horizon.steps, 6)) for point in at], jnp.int32)
        curve = lambda step: jnp.asarray(values)[jnp.sum(step >= borders)]
        return Schedule(curve, min(values), max(values))

    return over
