"""Tests of schedules: values by hand, bounds, errors, and temperatures that stay above 0."""

import math

import examples
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import SCHEDULES, every
from hypothesis import given
from hypothesis import strategies as st
from terms import build_loss

from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.schedules import Horizon, Schedule, as_schedule, require_positive, resolve

RUN = Horizon(steps=100, epoch=10.0)


def at(value, *steps: int, run: Horizon = RUN) -> list[float]:
    """Return the values of a schedule, given as in a config (a number or a spec string), at the given steps."""
    return [float(resolve(value, run, "rate")(jnp.asarray(step, jnp.int32))) for step in steps]


@pytest.mark.parametrize(
    ("spec", "steps", "values"),
    [
        ("0.7", (0, 50, 100), (0.7, 0.7, 0.7)),
        (2, (0, 100), (2.0, 2.0)),
        ("constant(value=0.5)", (0, 100), (0.5, 0.5)),
        ("linear(start=8, end=2)", (0, 25, 50, 100), (8.0, 6.5, 5.0, 2.0)),
        ("linear(start=0, end=1, begin=0.2, until=0.6)", (0, 20, 30, 40, 60, 99), (0.0, 0.0, 0.25, 0.5, 1.0, 1.0)),
        ("cosine(start=1.0)", (0, 25, 50, 75, 100), (1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0.0)),
        ("cosine(start=0.9, end=0.1)", (0, 50, 100), (0.9, 0.5, 0.1)),
        ("cosine(start=1.0, warmup=0.2)", (0, 1, 19, 20, 60, 100), (0.05, 0.1, 1.0, 1.0, 0.5, 0.0)),
        ("step(start=1.0, factor=0.5, every=2)", (0, 19, 20, 39, 40, 100), (1.0, 1.0, 0.5, 0.5, 0.25, 1 / 32)),
        ("phases(values=(1, 0), at=(0.3,))", (0, 29, 30, 100), (1.0, 1.0, 0.0, 0.0)),
        ("phases(values=(1, 2, 3), at=(0.3, 0.6))", (29, 30, 59, 60), (1.0, 2.0, 2.0, 3.0)),
        ("phases(values=(4,), at=())", (0, 100), (4.0, 4.0)),
        ("phases(values=(1, 2), at=(0.55,))", (54, 55), (1.0, 2.0)),  # 0.55 * 100 is 55.00000000000001
        ("phases(values=(1, 2), at=(0.333,))", (33, 34), (1.0, 2.0)),
    ],
)
def test_values_by_hand(spec, steps, values):
    for bits in (False, True):
        with jax.enable_x64(bits):
            np.testing.assert_allclose(at(spec, *steps), values, rtol=1e-6, atol=1e-7)


def test_the_missions_staging():
    """Check a rate of 0.001, times 0.9 every 3 epochs, and a weight of 0.7 early and 0.6 late."""
    run = Horizon(steps=3910, epoch=39.1)  # 5,000 rows, 128 a step, 100 epochs
    rate = "step(start=0.001, factor=0.9, every=3)"
    # three epochs are 117.3 steps
    steps, drops = (0, 117, 118, 234, 235, 351, 352, 3909), (0, 0, 1, 1, 2, 2, 3, 33)
    np.testing.assert_allclose(at(rate, *steps, run=run), [0.001 * 0.9**n for n in drops], rtol=1e-5)
    assert at("phases(values=(0.7, 0.6), at=(0.5,))", 0, 49, 50, 99) == pytest.approx([0.7, 0.7, 0.6, 0.6])


@pytest.mark.parametrize("epoch", [3, 10, 41, 47, 49])
def test_a_compiled_step_schedule_drops_at_the_very_step(epoch):
    """Check the step of each drop under jit: XLA multiplies by 1 / 41 instead of dividing; 41 / 41 is 0.99999994."""
    schedule = resolve("step(start=1.0, factor=0.5, every=1)", Horizon(100 * epoch, epoch), "rate")
    steps = np.arange(60 * epoch)
    np.testing.assert_allclose(jax.jit(jax.vmap(schedule))(steps), 0.5 ** (steps // epoch), rtol=1e-6)


def assert_within(schedule: Schedule, value: float) -> None:
    slack = 1e-5 * abs(value)  # the rounding of float32
    assert schedule.low - slack <= value <= schedule.high + slack


@every(SCHEDULES)
@given(steps=st.integers(1, 500), epoch=st.floats(0.5, 100))
def test_a_schedule_stays_within_its_bounds_and_is_a_float32_scalar(example, steps, epoch):
    run = Horizon(steps, epoch)
    schedule = resolve(example.spec, run, "rate")
    for step in (0, 1, steps // 2, steps - 1, steps):
        assert_within(schedule, float(schedule(step)))
    assert schedule(jnp.asarray(0)).shape == () and schedule(jnp.asarray(0)).dtype == jnp.float32


@every(SCHEDULES)
def test_every_step_of_a_run_is_within_the_bounds_and_the_same_under_jit(example):
    schedule = resolve(example.spec, examples.HORIZON, "rate")
    compiled = np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(101)))
    np.testing.assert_allclose(compiled, [schedule(step) for step in range(101)], rtol=1e-5)
    assert_within(schedule, float(compiled.min()))
    assert_within(schedule, float(compiled.max()))


def test_a_warm_up_of_broken_steps_does_not_overshoot():
    schedule = resolve("cosine(start=1.0, warmup=0.05)", Horizon(1510, 1.0), "rate")  # 75.5 steps
    assert max(float(schedule(step)) for step in range(70, 80)) <= 1.0


def test_a_number_is_a_constant_schedule_and_a_schedule_is_itself():
    constant = as_schedule(3.0)
    assert (constant.low, constant.high, float(constant(jnp.asarray(7)))) == (3.0, 3.0, 3.0)
    assert as_schedule(constant) is constant


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("cosin(start=1.0)", "Did you mean 'cosine'"),
        ("cosine(begin=1.0)", "no argument 'begin'"),
        ("cosine()", "missing a required argument: 'start'"),
        ("cosine(start='1')", "expected float"),
        ("cosine(start=1.0, warmup=1.5)", "between 0 and 1"),
        ("linear(start=1, end=2, begin=-0.1)", "between 0 and 1"),
        ("linear(start=1, end=2, begin=0.8, until=0.2)", "begin must not come after until"),
        ("step(start=1.0, factor=0.9, every=0)", "must be positive"),
        ("step(start=1.0, factor=-0.9, every=1)", "must be positive"),
        ("phases(values=(1, 2), at=())", "1 switching points"),
        ("phases(values=(1, 2, 3), at=(0.6, 0.3))", "must increase"),
        ("phases(values=(1, 2), at=(1.5,))", "between 0 and 1"),
        ("1 +", "'1 .*' is neither a number nor a schedule. Schedules: constant, "),
        ("1e-3,5", "'1e-3,5' is neither a number nor a schedule. Schedules: constant, "),
        ("", "'' is neither a number nor a schedule. Schedules: constant, "),
        ("cosine(start=1/3)", "not a spec string"),
        ("linear(start=1, end=-Inf)", "Inf is no number. Give a finite one"),
        ("linear(start=1, end=nan)", "nan is no number. Give a finite one"),
        ("nan", "neither a finite number"),
        ("inf", "neither a finite number"),
        (True, "neither a finite number"),
        (None, "neither a finite number"),
        ((1, 2), "neither a finite number"),
    ],
)
def test_what_is_no_schedule_is_refused_with_its_path(value, problem):
    with pytest.raises(ConfigError, match=f"objective.kd.weight: .*{problem}"):
        resolve(value, RUN, "objective.kd.weight")


@pytest.mark.parametrize(
    "temperature",
    [
        "0",
        "-1.0",
        "linear(start=4, end=0)",
        "linear(start=4, end=-1)",
        "cosine(start=4)",
        "cosine(start=-4, end=4)",
        "phases(values=(4, 0, 4), at=(0.3, 0.6))",
        "step(start=-1, factor=0.5, every=1)",
    ],
)
def test_a_temperature_that_is_ever_0_or_negative_or_infinite_is_refused_before_any_model_exists(temperature):
    with pytest.raises(ConfigError, match=r"objective.*must stay above 0"):
        build_loss(f"kd(temperature={temperature})")


def test_a_temperature_that_stays_positive_is_taken():
    for temperature in (
        "4",
        "0.01",
        "linear(start=8, end=2)",
        "cosine(start=8, end=1)",
        "cosine(start=8, end=1, warmup=1.0)",
    ):
        term = build_loss(f"kd(temperature={temperature})")
        assert term.temperature.low > 0
    for broken in (Schedule(lambda step: step, math.nan, math.nan), Schedule(lambda step: step, 1.0, math.inf)):
        with pytest.raises(ValueError, match="must stay above 0"):
            require_positive("temperature", broken)


def test_every_schedule_says_what_it_does():
    assert all(registry.schedules[name].__doc__ for name in registry.schedules)


@pytest.mark.parametrize("spec", ["linear(start=1.0, end=0.1)", "cosine(start=1.0, end=0.1, warmup=0.1)", "0.1"])
def test_in_64_bits_a_schedule_has_64_bits(spec):
    with jax.enable_x64(True):
        schedule = resolve(spec, Horizon(1000, 10), "rate")
        found = np.array([float(schedule(step)) for step in (5, 333, 777)])
        assert schedule(333).dtype == np.float64
    t = np.array([5, 333, 777]) / 1000
    wanted = {
        "linear": 1 - 0.9 * t,
        "cosine": np.where(t < 0.1, 6 / 100, 0.1 + 0.45 * (1 + np.cos(np.pi * (t - 0.1) / 0.9))),
        "0.1": np.full(3, 0.1),
    }[spec.partition("(")[0]]
    np.testing.assert_allclose(found, wanted, rtol=1e-13)
    assert resolve(spec, Horizon(1000, 10), "rate")(333).dtype == np.float32
