"""Tests of divergences of softmaxes with hand-written gradients: all derivatives are those of plain JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdistill.core import jaxpr, softmax
from jaxdistill.losses.logits.jsd import generalized_jsd, normalized_jsd
from jaxdistill.losses.logits.kd import kl_divergence
from jaxdistill.losses.logits.reverse_kl import reverse_kl_divergence
from jaxdistill.losses.logits.skew_kl import skew_divergence
from jaxdistill.losses.logits.skew_reverse_kl import detached_skew_reverse_divergence, skew_reverse_divergence
from jaxdistill.losses.logits.taid import interpolated_cross_entropy

DIVERGENCES = {
    "kd": kl_divergence,
    "reverse_kl": reverse_kl_divergence,
    "jsd": lambda s, t, temperature: generalized_jsd(s, t, 0.3, temperature),
    "normalized jsd": lambda s, t, temperature: normalized_jsd(s, t, 0.9, temperature),
    "skew_kl": lambda s, t, temperature: skew_divergence(s, t, 0.1, temperature),
    "skew_reverse_kl v1": lambda s, t, temperature: skew_reverse_divergence(s, t, 0.1, temperature),
    "skew_reverse_kl v2": lambda s, t, temperature: detached_skew_reverse_divergence(s, t, 0.1, temperature),
    "taid": lambda s, t, temperature: interpolated_cross_entropy(s, t, 0.4, temperature),
}
each = pytest.mark.parametrize("name", DIVERGENCES)


def by_hand(function, is_so: bool = True):
    """Wrap a function so that it is traced with the hand-written gradients, for any number of classes, or without."""

    @functools.wraps(function)
    def traced(*args):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(softmax, "MANY", 0 if is_so else 10**9)
            return function(*args)

    return traced


def logits(shape, seed, scale=3.0, masked=0):
    """Draw logits of student and teacher, where the teacher's first `masked` classes are minus infinity."""
    student, teacher = (scale * jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(seed)))
    return student, teacher.at[..., :masked].set(-jnp.inf)


def distance(found, wanted) -> float:
    """Return the largest error of values and gradients, divided by the largest wanted number (or 0.1 if it is less)."""
    found, wanted = ([np.asarray(x, np.float64) for x in jax.tree.leaves(tree)] for tree in (found, wanted))
    largest = max(np.abs(x).max() for x in wanted)
    assert np.isfinite(largest)
    return max(np.abs(a - b).max() for a, b in zip(found, wanted, strict=True)) / max(largest, 0.1)


def near(found, wanted, tolerance):
    assert distance(found, wanted) <= tolerance


def value_and_slopes(name, student, teacher, temperature, weights):
    """Return a weighted sum of a divergence over rows, and its gradients in student, teacher and temperature."""
    total = lambda s, t, at: jnp.sum(weights * DIVERGENCES[name](s, t, at))
    return jax.value_and_grad(total, (0, 1, 2))(student, teacher, temperature)


def check(name, shape, temperature, seed, masked, scale):
    student, teacher = logits(shape, seed, scale, masked)
    weights = jax.random.normal(jax.random.key(seed), shape[:1])
    args = student, teacher, np.float32(temperature), weights
    found, plain = (both(name, is_so)(*args) for is_so in (True, False))
    with jax.enable_x64(True):
        wide = [np.asarray(x, np.float64) for x in args]
        wanted, in_float64 = (both(name, is_so)(*wide) for is_so in (False, True))
    if masked:  # d(-inf / T) / dT is NaN in the plain form, too
        every = found, plain, wanted, in_float64
        found, plain, wanted, in_float64 = ((value, slopes[:2]) for value, slopes in every)
    near(in_float64, wanted, 1e-10)
    near(found, wanted, 1e-5 + 2 * distance(plain, wanted))  # the plain form rounds large logits, too


def both(name, is_so):
    return jax.jit(by_hand(functools.partial(value_and_slopes, name), is_so))


@each
@pytest.mark.parametrize(("masked", "scale"), [(0, 3.0), (2, 30.0)])
def test_value_and_gradients_are_those_of_the_plain_form(name, masked, scale):
    check(name, (3, 7), 2.0, 0, masked, scale)


@pytest.mark.slow
@each
@settings(deadline=None, max_examples=15, derandomize=True)
@given(
    st.tuples(st.integers(1, 4), st.integers(2, 300)),
    st.floats(0.5, 8.0),
    st.integers(0, 10**6),
    st.sampled_from([0, 1]),
    st.sampled_from([0.1, 3.0, 30.0]),
)
def test_so_they_are_for_any_shape(name, shape, temperature, seed, masked, scale):
    """Check value and gradients for random shapes, temperatures and scales of the logits."""
    check(name, shape, temperature, seed, masked, scale)


@each
def test_forward_mode_and_gradients_of_gradients(name):
    with jax.enable_x64(True):
        student, teacher = (x.astype(jnp.float64) for x in logits((3, 7), 1))
        direction = jax.random.normal(jax.random.key(2), student.shape)

        def along(s, t):
            value, change = jax.jvp(lambda s: DIVERGENCES[name](s, t, 2.0), (s,), (direction,))
            return jnp.sum(jnp.sin(change) + value)

        def of_gradient(s, t):
            return jnp.sum(jax.grad(lambda s: jnp.sum(DIVERGENCES[name](s, t, 2.0)))(s) ** 2)

        for function in (along, of_gradient):
            slopes = jax.grad(function, (0, 1))
            near(*(jax.jit(by_hand(slopes, is_so))(student, teacher) for is_so in (True, False)), 1e-9)


@each
def test_bfloat16_logits(name):
    student, teacher = (x.astype(jnp.bfloat16) for x in logits((4, 300), 3))
    weights = jnp.ones(4)
    found = both(name, True)(student, teacher, jnp.float32(2.0), weights)
    wide = [x.astype(jnp.float32) for x in (student, teacher)]
    near(found, both(name, False)(*wide, jnp.float32(2.0), weights), 1e-2)


@each
def test_a_row_of_a_batch_is_what_it_is_alone(name):
    student, teacher = logits((3, 2, 50), 4)
    slope = jax.grad(lambda s, t: jnp.sum(DIVERGENCES[name](s, t, 2.0)))
    near(*(jax.jit(by_hand(f))(student, teacher) for f in (jax.vmap(slope), slope)), 1e-6)


def test_a_frozen_teacher_costs_no_gradient():
    def equations(frozen):
        total = by_hand(lambda s, t: jnp.sum(kl_divergence(s, frozen(t), 2.0)))
        return jaxpr.eliminate_dead_code(jax.make_jaxpr(jax.grad(total, (0, 1)))(*logits((8, 64), 5)).jaxpr)[0].eqns

    assert len(equations(jax.lax.stop_gradient)) < len(equations(lambda t: t))


def test_from_many_classes_on_it_is_used():
    """Check that the hand-written gradient is used from `MANY` classes on, and not for fewer."""
    used = lambda classes: "optimization_barrier" in str(jax.make_jaxpr(kl_divergence)(*logits((1, classes), 6)))
    assert used(softmax.MANY) and not used(softmax.MANY - 1)
