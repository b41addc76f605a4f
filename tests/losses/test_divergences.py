"""Tests of `reverse_kl`, `jsd`, `skew_kl` and `skew_reverse_kl`: by hand, against each other, and at limits."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import signals
from checks import assert_close
from terms import build_loss, loss_values

from jaxdistill.core.types import Outputs
from jaxdistill.losses.logits.jsd import generalized_jsd, normalized_jsd
from jaxdistill.losses.logits.kd import kl_divergence
from jaxdistill.losses.logits.reverse_kl import reverse_kl_divergence
from jaxdistill.losses.logits.skew_kl import skew_divergence
from jaxdistill.losses.logits.skew_reverse_kl import skew_reverse_divergence

KEY = jax.random.key(0)


def drawn(seed: int, *shape: int) -> tuple[Any, Any]:
    student, teacher = np.float32(2 * np.random.default_rng(seed).normal(size=(2, *shape)))
    return student, teacher


def softmax(z: Any) -> np.ndarray:
    e = np.exp(np.asarray(z, np.float64))
    return e / e.sum(-1, keepdims=True)


def values(spec: str, student: Any, teacher: Any) -> Any:
    """Return the values of a term without parameters or state."""
    seen = replace(signals(), student=Outputs(student), teacher=Outputs(teacher), batch={})
    return build_loss(spec).apply({}, {}, seen, key=KEY)[0]


reverse_kl = jax.jit(reverse_kl_divergence)
kl = jax.jit(kl_divergence)
jsd, normalized = (jax.jit(loss, static_argnums=2) for loss in (generalized_jsd, normalized_jsd))


# Reverse KL


def test_reverse_kl_by_hand():
    student, teacher = np.log(np.float32([[0.5, 0.5]])), np.log(np.float32([[0.9, 0.1]]))
    assert_close(reverse_kl(student, teacher), [0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)])
    assert_close(kl(student, teacher), [0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)])


def test_a_class_that_only_the_teacher_masks_is_left_out_of_the_reverse_kl():
    student, teacher = drawn(2, 3, 5)
    masked = np.where(np.arange(5) < 3, teacher, np.float32(-np.inf))
    both = jax.jit(jax.value_and_grad(lambda s, t: reverse_kl_divergence(s, t).sum()))
    value, slope = jax.device_get(both(student, masked))
    assert_close(value, np.sum(reverse_kl(student[:, :3], teacher[:, :3])))
    assert not slope[:, 3:].any() and slope[:, :3].all()


def test_leaving_out_the_addend_alone_would_reward_a_student_for_going_where_the_teacher_is_not():
    """Check that published code, which leaves out only the addend of a masked class, falls below 0; ours stays 0."""
    teacher = np.float32([0.0, 0.0, -np.inf])
    student = lambda away: np.float32([0.0, 0.0, away])

    def published(s):
        q, log_p = softmax(s)[:2], np.log(softmax(teacher[:2]))
        return (q * (np.log(q) - log_p)).sum()

    assert published(student(0.5)) < -0.3 and published(student(9.0)) > -0.01
    for away in (-5.0, 0.5, 9.0):
        assert_close(reverse_kl(student(away), teacher), 0.0)


# Jensen-Shannon


def test_jsd_by_hand():
    p, q, b = np.array([0.9, 0.1]), np.array([0.5, 0.5]), 0.25
    m = b * p + (1 - b) * q
    by_hand = b * (p * np.log(p / m)).sum() + (1 - b) * (q * np.log(q / m)).sum()
    assert_close(jsd(np.log(q), np.log(p), b), by_hand)
    assert_close(normalized(np.log(q), np.log(p), b), by_hand / (b * (1 - b)))
    assert_close(jsd(np.log(p), np.log(q), 1 - b), by_hand)


def test_the_published_form_jumps_at_its_ends_and_the_normalised_one_does_not():
    student, teacher = (z / 2 for z in drawn(3, 16, 6))
    ends = {0.0: kl_divergence, 1.0: reverse_kl_divergence}
    for end, divergence in ends.items():
        near = abs(end - 1e-5)
        found, slope = value_and_slope(lambda s, t, b=near: normalized_jsd(s, t, b), student, teacher)
        want, want_slope = value_and_slope(divergence, student, teacher)
        assert_close(jsd(student, teacher, end), want)
        assert (np.asarray(jsd(student, teacher, near)) < 1e-3 * want).all()
        assert_close(found, want, rtol=2e-3, atol=1e-4)
        assert_close(slope, want_slope, rtol=2e-3, atol=1e-3)


def value_and_slope(divergence: Any, student: np.ndarray, teacher: np.ndarray) -> Any:
    """Return the value of each row, and the gradients of their sum in the student's and the teacher's logits."""

    @jax.jit
    def both(*logits):
        values, pull = jax.vjp(divergence, *logits)
        return values, pull(jnp.ones_like(values))

    return jax.device_get(both(student, teacher))


@pytest.mark.sampled("1e-06", "0.1")
@pytest.mark.parametrize("beta", [1e-6, 0.1, 0.5, 0.9, 1 - 1e-6])
def test_jsd_in_float32_is_that_in_float64(beta):
    """Check logits for which a class is a million times likelier for one model, also with beta almost 0 or 1."""
    student, teacher = (8 * z for z in drawn(4, 32, 6))
    for loss in (jsd, normalized):
        single = loss(student, teacher, beta)
        with jax.enable_x64(True):
            double = loss(*(np.asarray(z, np.float64) for z in (student, teacher)), beta)
        assert_close(single, double, rtol=2e-5, atol=2e-6)


def test_skew_and_jsd_are_made_of_the_same_pieces():
    student, teacher = drawn(5, 4, 6)
    b = 0.3
    pieces = lambda s, t: b * skew_divergence(s, t, b) + (1 - b) * skew_reverse_divergence(s, t, 1 - b)
    assert_close(jsd(student, teacher, b), jax.jit(pieces)(student, teacher))


# Skew


def test_skew_by_hand():
    student, teacher = drawn(6, 4, 6)
    q, p, a = softmax(student), softmax(teacher), 0.1
    forward = (p * np.log(p / (a * p + (1 - a) * q))).sum(-1)
    reverse = (q * np.log(q / ((1 - a) * p + a * q))).sum(-1)
    found = lambda spec: jax.jit(lambda s, t: values(spec, s, t))(student, teacher)
    assert_close(found("skew_kl"), forward)
    assert_close(found("skew_kl(version='v1')"), forward - (p * np.log(p)).sum(-1))
    for version in ("v1", "v2"):
        assert_close(found(f"skew_reverse_kl(version='{version}')"), reverse)


def test_the_versions_of_a_skew_differ_where_their_papers_do():
    """Check that `skew_kl` versions differ only in the teacher's gradient, `skew_reverse_kl` only in the student's."""
    student, teacher = drawn(7, 4, 6)
    slope = lambda spec: jax.jit(jax.grad(lambda s, t: values(spec, s, t).sum(), (0, 1)))
    slopes = lambda spec: jax.device_get(slope(spec)(student, teacher))
    one, two = (slopes(f"skew_kl(version='{version}')") for version in ("v1", "v2"))
    assert_close(one[0], two[0])
    assert np.abs(one[1] - two[1]).max() > 0.1
    one, two = (slopes(f"skew_reverse_kl(version='{version}')") for version in ("v1", "v2"))
    assert np.abs(one[0] - two[0]).max() > 0.01
    assert_close(one[1], two[1])
    q, p = softmax(student), softmax(teacher)  # the gradient for a constant mixture m is q (r - mean r), r = log q / m
    ratio = np.log(q / (0.9 * p + 0.1 * q))
    assert_close(two[0], q * (ratio - (q * ratio).sum(-1, keepdims=True)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["kd", "reverse_kl", "jsd", "dkd", "dist"])
def test_by_default_a_softened_loss_is_multiplied_by_the_square_of_the_temperature(name):
    seen = signals(batch=(6,))
    plain, scaled = (loss_values(f"{name}(temperature=3.0{more})", seen) for more in (", scale_t2=False", ""))
    assert_close(scaled, 9 * plain, rtol=1e-5)
    assert np.abs(plain).max() > 1e-3
