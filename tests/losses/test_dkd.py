"""Tests of the loss `dkd`: its identity with `kd`, two classes, large logits, and masked classes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import drawn_logits as drawn
from batches import signals
from checks import assert_close, softmax
from terms import loss_values as values

from jaxdistill.losses.logits.dkd import other_divergence, target_divergence
from jaxdistill.losses.logits.kd import kl_divergence

# Decoupled


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_is_what_dkd_decouples(temperature):
    student, teacher = drawn(8, 16, 6)
    labels = np.random.default_rng(0).integers(0, 6, 16).astype(np.int32)

    @jax.jit
    def apart(s, t, y):
        parts = target_divergence(s, t, y, temperature), other_divergence(s, t, y, temperature)
        return kl_divergence(s, t, temperature), *parts

    whole, target, others = map(np.asarray, apart(student, teacher, labels))
    p = softmax(teacher / temperature)[np.arange(16), labels]
    assert_close(whole, target + (1 - p) * others, rtol=1e-4)


def test_dkd_of_two_classes_knows_nothing_of_others():
    student, teacher = drawn(9, 5, 2)
    labels = np.int32([0, 1, 0, 1, 1])
    target, others = jax.jit(lambda *x: (target_divergence(*x), other_divergence(*x)))(student, teacher, labels)
    assert_close(target, jax.jit(kl_divergence)(student, teacher), rtol=1e-4)
    assert not np.any(others)


def test_dkd_hides_the_label_however_large_its_logit():
    """Check a label whose logit is larger by 3000; published code adds -1000 to it, too little to hide it."""
    student, teacher = drawn(10, 3, 4)
    large = lambda z: z + np.float32([3000, 0, 0, 0])
    hidden = jax.jit(other_divergence)(large(student), large(teacher), np.zeros(3, np.int32))
    assert_close(hidden, jax.jit(kl_divergence)(student[:, 1:], teacher[:, 1:]))


def test_dkd_of_a_teacher_that_masks_all_other_classes_is_0_with_a_gradient_of_0():
    teacher, labels = jnp.array([[1.0, -jnp.inf, -jnp.inf]]), jnp.zeros(1, int)
    loss = jax.jit(jax.value_and_grad(lambda s: other_divergence(s, teacher, labels, 2.0).sum()))
    value, slope = loss(jnp.array([[1.0, 2.0, 3.0]]))
    assert value == 0 and not slope.any()


def test_dkd_needs_a_class_for_each_row():
    seen = signals()
    for batch, said in (({}, "no field 'label'"), ({"label": jnp.zeros((6, 2), int)}, r"labels of shape \[6, 2\]")):
        with pytest.raises(ValueError, match=said):
            values("dkd", replace(seen, batch=batch))
