"""Tests of the loss `dist`: numpy's correlations, masked rows and classes, and batches in parts."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from batches import drawn_logits as drawn
from batches import signals
from checks import assert_close, softmax
from terms import loss_values as values

from jaxdistill.core.types import Outputs
from jaxdistill.losses.logits.dist import correlation_distance, pearson_correlation

# Relations


def test_dist_is_one_minus_numpys_correlations():
    student, teacher = drawn(11, 12, 5)
    mask = np.float32([1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 0])
    q, p = (softmax(z / 2)[np.asarray(mask) > 0] for z in (student, teacher))
    rows = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)])
    columns = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)])
    seen = replace(
        signals(batch=(12,)), student=Outputs(student), teachers=(Outputs(teacher),), mask=mask, temperature=2.0
    )
    expected = 4 * (0.5 * (1 - rows) + 3 * (1 - columns))
    assert_close(values("dist(beta=0.5, gamma=3.0, temperature=2.0)", seen), expected, rtol=1e-4)
    of_sequences = replace(
        seen,
        student=Outputs(student.reshape(3, 4, 5)),
        teachers=(Outputs(teacher.reshape(3, 4, 5)),),
        mask=mask.reshape(3, 4),
    )
    assert_close(values("dist(beta=0.5, gamma=3.0, temperature=2.0)", of_sequences), expected, rtol=1e-4)


def test_a_mean_of_dist_over_parts_of_the_batch_is_another_loss():
    """Check that the mean over two halves is not the loss of the whole, which is why `dist` gathers its rows."""
    student, teacher = drawn(12, 8, 5)
    loss = jax.jit(lambda s, t: correlation_distance(s, t, jnp.ones(len(s), bool), beta=0.0))
    whole = loss(student, teacher)
    halves = [loss(student[i : i + 4], teacher[i : i + 4]) for i in (0, 4)]
    assert abs(np.mean(halves) - whole) > 0.02


def test_dist_does_not_see_scale_and_shift_of_probabilities():
    x = np.float32(np.random.default_rng(0).random((3, 7)))
    correlation = jax.jit(lambda x, y: pearson_correlation(x, y, jnp.ones((3, 7), bool)))
    assert_close(correlation(x, 0.2 * x + 3), np.ones(3), rtol=1e-4)
    assert_close(correlation(x, -x), -np.ones(3))
    value, slope = jax.jit(jax.value_and_grad(lambda y: correlation(x, y).sum()))(np.ones((3, 7), np.float32))
    assert value == 0 and not np.any(slope)


def test_a_class_that_the_teacher_never_has_is_none_of_those_that_dist_compares():
    student, teacher = drawn(13, 9, 5)
    masked = np.where(np.arange(5) < 3, teacher, np.float32(-np.inf))
    found = jax.jit(lambda s, t: correlation_distance(s, t, jnp.ones(9, bool), beta=0.0))(student, masked)
    q, p = softmax(student), softmax(masked)
    by_hand = 1 - np.mean([np.corrcoef(q[:, c], p[:, c])[0, 1] for c in range(3)])
    assert_close(found, by_hand, rtol=1e-4)


def test_nothing_that_counts_is_no_loss():
    student, teacher = drawn(14, 4, 5)
    found = jax.jit(jax.value_and_grad(lambda s, t: correlation_distance(s, t, jnp.zeros(4, bool))))(student, teacher)
    assert not any(np.any(x) for x in found)
