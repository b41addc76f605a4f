"""Curves over a run, for the learning rate, the weights of terms and their temperatures: the one owner of curves.

A schedule factory returns a function of the run's `Horizon`, so that a config can speak of fractions and epochs and
stay true when the number of steps changes. A schedule knows its extremes, so that a negative temperature is refused
before compilation.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import Spec, parse, schedules
from jaxdistill.core.types import Array


class Horizon(NamedTuple):
    """The length of a run: `steps` in all, `epoch` steps in one pass over the data."""

    steps: int
    epoch: float


@dataclass(frozen=True)
class Schedule:
    """A curve `step -> value` and the least and greatest values it takes during the run."""

    curve: Callable[[Array], Array | float]
    low: float
    high: float

    def __call__(self, step: Array) -> Array:
        """The value at a step, a float32 scalar."""
        return jnp.asarray(self.curve(step), jnp.float32)


Scalar = Schedule | float  # what a factory takes where a config may give a number or a schedule
Timed = Callable[[Horizon], Schedule]


def as_schedule(value: Scalar) -> Schedule:
    """A schedule as it is; a number as a constant one."""
    return value if isinstance(value, Schedule) else Schedule(lambda step: value, value, value)


def resolve(value: float | str | Spec, horizon: Horizon, path: str) -> Schedule:
    """What a config says ("0.9", 0.9, "cosine(start=0.9, end=0.1)") as a schedule over the horizon.

    Raises:
        ConfigError: if it is neither a number nor the spec of a schedule.
    """
    if isinstance(value, str):
        value = _number_or_spec(value, path)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return as_schedule(float(value))
    if not isinstance(value, Spec):
        raise ConfigError(path, f"{value!r} is no finite number and no schedule. Schedules: {', '.join(schedules)}.")
    try:
        return schedules.build(value, path)(horizon)
    except ArithmeticError as error:
        raise ConfigError(path, f"this curve cannot be computed over {horizon.steps} steps ({error}).") from None


def _number_or_spec(text: str, path: str) -> float | Spec:
    try:
        return float(text)
    except ValueError:
        return parse(text, path)


def require_positive(name: str, schedule: Schedule) -> Schedule:
    """The schedule itself.

    Raises:
        ValueError: if it is ever zero, negative or infinite.
    """
    if not 0 < schedule.low <= schedule.high < math.inf:
        reached = schedule.low if schedule.low <= 0 else schedule.high
        raise ValueError(f"{name} must stay above 0 and finite, but it reaches {reached:g}")
    return schedule


def _progress(step: Array, start: float, end: float) -> Array:
    """How much of the stretch from step `start` to step `end` is done, 0 to 1."""
    return jnp.clip((step - start) / max(end - start, 1.0), 0.0, 1.0)


def _fractions(**values: float) -> None:
    for name, value in values.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} is a fraction of the run, between 0 and 1; got {value}")


@schedules.register
def constant(value: float) -> Timed:
    """The same value throughout."""
    return lambda horizon: as_schedule(value)


@schedules.register
def linear(start: float, end: float, begin: float = 0.0, until: float = 1.0) -> Timed:
    """A straight line from `start` to `end` between the fractions `begin` and `until` of the run, flat outside."""
    _fractions(begin=begin, until=until)
    if begin > until:
        raise ValueError(f"begin must not come after until; got begin={begin}, until={until}")

    def over(horizon: Horizon) -> Schedule:
        first, last = begin * horizon.steps, until * horizon.steps
        curve = lambda step: start + (end - start) * _progress(step, first, last)
        return Schedule(curve, min(start, end), max(start, end))

    return over


@schedules.register
def cosine(start: float, end: float = 0.0, warmup: float = 0.0) -> Timed:
    """Half a cosine from `start` to `end` (SGDR, Loshchilov 2017), after a linear rise over the fraction `warmup`."""
    _fractions(warmup=warmup)

    def over(horizon: Horizon) -> Schedule:
        rise = warmup * horizon.steps

        def curve(step: Array) -> Array:
            fall = end + (start - end) * 0.5 * (1 + jnp.cos(jnp.pi * _progress(step, rise, horizon.steps)))
            # the first step already moves: 1/rise, not 0
            return jnp.where(step < rise, start * jnp.minimum((step + 1) / max(rise, 1.0), 1.0), fall)

        first = start / max(rise, 1.0)
        return Schedule(curve, min(start, end, first), max(start, end, first))

    return over


@schedules.register
def step(start: float, factor: float, every: float) -> Timed:
    """`start`, multiplied by `factor` after every `every` epochs."""
    if every <= 0 or factor <= 0:
        raise ValueError(f"every and factor must be positive; got every={every}, factor={factor}")

    def over(horizon: Horizon) -> Schedule:
        # a hair less: compiled, a division by 41 is a product with 1/41, which makes 0.99999994 of 41
        length = every * horizon.epoch * (1 - 1e-6)
        drops = lambda step: jnp.floor(step / length)
        last = start * factor ** int(horizon.steps / length)
        return Schedule(lambda step: start * factor ** drops(step), min(start, last), max(start, last))

    return over


@schedules.register
def phases(values: tuple[float, ...], at: tuple[float, ...]) -> Timed:
    """`values[0]`, then `values[1]` from the fraction `at[0]` of the run on, and so forth: training in phases."""
    if len(values) != len(at) + 1:
        raise ValueError(f"{len(values)} values need {len(values) - 1} switching points in `at`; got {len(at)}")
    if list(at) != sorted(at):
        raise ValueError(f"the switching points must rise; got at={at}")
    _fractions(**{f"at[{i}]": point for i, point in enumerate(at)})

    def over(horizon: Horizon) -> Schedule:
        borders = jnp.asarray([point * horizon.steps for point in at])
        curve = lambda step: jnp.asarray(values)[jnp.sum(step >= borders)]
        return Schedule(curve, min(values), max(values))

    return over
