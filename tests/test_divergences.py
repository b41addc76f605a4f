"""Divergences between student and teacher, by hand and against each other, and at the ends of their ranges."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import assert_close, build_loss, signals

from jaxdistill.losses.jsd import generalized_jsd, normalized_jsd
from jaxdistill.losses.kd import kl_divergence
from jaxdistill.losses.reverse_kl import reverse_kl_divergence
from jaxdistill.losses.skew_kl import skew_divergence
from jaxdistill.losses.skew_reverse_kl import skew_reverse_divergence
from jaxdistill.types import Outputs

KEY = jax.random.key(0)


def drawn(seed: int, *shape: int) -> tuple[Any, Any]:
    student, teacher = 2 * np.random.default_rng(seed).normal(size=(2, *shape))
    return jnp.asarray(student, jnp.float32), jnp.asarray(teacher, jnp.float32)


def softmax(z: Any) -> np.ndarray:
    e = np.exp(np.asarray(z, np.float64))
    return e / e.sum(-1, keepdims=True)


def values(spec: str, student: Any, teacher: Any) -> Any:
    """A stateless term's values."""
    seen = replace(signals(), student=Outputs(student), teacher=Outputs(teacher), batch={})
    return build_loss(spec).apply({}, {}, seen, key=KEY)[0]


# Reverse KL


def test_reverse_kl_by_hand():
    student, teacher = jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.9, 0.1]]))
    assert_close(reverse_kl_divergence(student, teacher), [0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)])
    assert_close(kl_divergence(student, teacher), [0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)])


def test_a_class_that_only_the_teacher_masks_is_left_out_of_the_reverse_kl():
    student, teacher = drawn(2, 3, 5)
    masked = jnp.where(jnp.arange(5) < 3, teacher, -jnp.inf)
    value, slope = jax.value_and_grad(lambda s: reverse_kl_divergence(s, masked).sum())(student)
    assert_close(value, reverse_kl_divergence(student[:, :3], teacher[:, :3]).sum())
    assert not slope[:, 3:].any() and slope[:, :3].all()


def test_leaving_out_the_addend_alone_would_reward_a_student_for_going_where_the_teacher_is_not():
    """What published code does there falls below 0; ours does not move, and is least at the teacher."""
    teacher = jnp.array([0.0, 0.0, -jnp.inf])
    student = lambda away: jnp.array([0.0, 0.0, away])

    def published(s):
        q, log_p = softmax(s)[:2], np.log(softmax(teacher[:2]))
        return (q * (np.log(q) - log_p)).sum()

    assert published(student(0.5)) < -0.3 and published(student(9.0)) > -0.01
    for away in (-5.0, 0.5, 9.0):
        assert_close(reverse_kl_divergence(student(away), teacher), 0.0)


# Jensen-Shannon


def test_jsd_by_hand():
    p, q, b = np.array([0.9, 0.1]), np.array([0.5, 0.5]), 0.25
    m = b * p + (1 - b) * q
    by_hand = b * (p * np.log(p / m)).sum() + (1 - b) * (q * np.log(q / m)).sum()
    assert_close(generalized_jsd(jnp.log(q), jnp.log(p), b), by_hand)
    assert_close(normalized_jsd(jnp.log(q), jnp.log(p), b), by_hand / (b * (1 - b)))
    assert_close(generalized_jsd(jnp.log(p), jnp.log(q), 1 - b), by_hand)


def test_the_published_form_jumps_at_its_ends_and_the_normalised_one_does_not():
    student, teacher = (z / 2 for z in drawn(3, 16, 6))
    ends = {0.0: kl_divergence, 1.0: reverse_kl_divergence}
    for end, divergence in ends.items():
        near = abs(end - 1e-5)
        both = lambda f, b: jax.vjp(lambda s, t, f=f, b=b: f(s, t, b), student, teacher)
        want, want_slope = jax.vjp(divergence, student, teacher)
        assert_close(generalized_jsd(student, teacher, end), want)
        assert (generalized_jsd(student, teacher, near) < 1e-3 * want).all()
        found, slope = both(normalized_jsd, near)
        assert_close(found, want, rtol=2e-3, atol=1e-4)
        assert_close(slope(jnp.ones(16)), want_slope(jnp.ones(16)), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("beta", [1e-6, 0.1, 0.5, 0.9, 1 - 1e-6])
def test_jsd_in_float32_is_that_in_float64(beta):
    """Also where a class is a million times likelier for one of them, and at the very ends of the mixture."""
    student, teacher = (8 * z for z in drawn(4, 32, 6))
    for loss in (generalized_jsd, normalized_jsd):
        single = loss(student, teacher, beta)
        with jax.enable_x64(True):
            double = loss(*(jnp.asarray(np.asarray(z, np.float64)) for z in (student, teacher)), beta)
        assert_close(single, double, rtol=2e-5, atol=2e-6)


def test_skew_and_jsd_are_made_of_the_same_pieces():
    student, teacher = drawn(5, 4, 6)
    b = 0.3
    pieces = b * skew_divergence(student, teacher, b) + (1 - b) * skew_reverse_divergence(student, teacher, 1 - b)
    assert_close(generalized_jsd(student, teacher, b), pieces)


# Skew


def test_skew_by_hand():
    student, teacher = drawn(6, 4, 6)
    q, p, a = softmax(student), softmax(teacher), 0.1
    forward = (p * np.log(p / (a * p + (1 - a) * q))).sum(-1)
    reverse = (q * np.log(q / ((1 - a) * p + a * q))).sum(-1)
    assert_close(values("skew_kl", student, teacher), forward)
    assert_close(values("skew_kl(version='v1')", student, teacher), forward - (p * np.log(p)).sum(-1))
    for version in ("v1", "v2"):
        assert_close(values(f"skew_reverse_kl(version='{version}')", student, teacher), reverse)


def test_the_versions_of_a_skew_differ_where_their_papers_do():
    """The forward ones in the teacher's gradient, the reverse ones in the student's."""
    student, teacher = drawn(7, 4, 6)
    slopes = lambda spec: jax.grad(lambda s, t: values(spec, s, t).sum(), (0, 1))(student, teacher)
    one, two = (slopes(f"skew_kl(version='{version}')") for version in ("v1", "v2"))
    assert_close(one[0], two[0])
    assert np.abs(one[1] - two[1]).max() > 0.1
    one, two = (slopes(f"skew_reverse_kl(version='{version}')") for version in ("v1", "v2"))
    assert np.abs(one[0] - two[0]).max() > 0.01
    assert_close(one[1], two[1])
    q, p = softmax(student), softmax(teacher)  # of a mixture that stays where it is: q (r - mean r), r = log q / m
    ratio = np.log(q / (0.9 * p + 0.1 * q))
    assert_close(two[0], q * (ratio - (q * ratio).sum(-1, keepdims=True)), rtol=1e-4, atol=1e-5)
