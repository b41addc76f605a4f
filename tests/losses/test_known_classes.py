"""Tests of the loss `known_classes`: classes that the teacher lacks have no part in the loss, and no gradient."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import signals, single
from checks import assert_close
from terms import build_loss, compiled_loss
from terms import loss_values as values

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.types import SparseLogits

UNKNOWN = np.array([False, True, False, False, True])
INNER = (
    *("kd(temperature=3.0)", "reverse_kl(temperature=2.0)", "jsd(beta=0.3)", "skew_kl()", "skew_reverse_kl()", "ttm()"),
    *("logit_mse", "standardized(loss=kd(temperature=2.0))"),
)


def known(loss):
    return f"known_classes(loss={loss if '(' in loss else f'{loss}()'})"


def lacking(seen, logits=None):
    teacher = seen.teachers[0]
    teacher = replace(teacher, logits=jnp.where(UNKNOWN, -jnp.inf, teacher.logits))
    student = seen.student if logits is None else replace(seen.student, logits=logits)
    return replace(seen, student=student, teachers=(teacher,))


def known_alone(seen, logits=None):
    of = lambda outputs, x=None: replace(outputs, logits=(outputs.logits if x is None else x)[..., ~UNKNOWN])
    return replace(seen, student=of(seen.student, logits), teachers=(of(seen.teachers[0]),))


@pytest.mark.parametrize("loss", INNER)
def test_it_is_the_loss_of_the_known_classes(loss):
    seen = signals()
    spec, logits = known(loss), single(seen.student.logits)
    assert_close(values(spec, lacking(seen)), values(loss, known_alone(seen)))
    whole = jax.grad(lambda x: jnp.sum(compiled_loss(spec)(lacking(seen, x), None)))(logits)
    alone = jax.grad(lambda x: jnp.sum(compiled_loss(loss)(known_alone(seen, x), None)))(logits)
    assert_close(whole, alone)
    assert not np.any(np.asarray(whole)[:, UNKNOWN]) and np.any(np.asarray(whole)[:, ~UNKNOWN])


def test_without_it_soft_targets_push_unknown_classes_away():
    seen = signals()
    loss, logits = compiled_loss("kd(temperature=3.0)"), single(seen.student.logits)
    slope = jax.grad(lambda x: jnp.sum(loss(lacking(seen, x), None)))(logits)
    assert np.all(np.asarray(slope)[:, UNKNOWN] > 0)


@pytest.mark.parametrize("loss", INNER)
def test_a_teacher_of_all_classes_changes_nothing(loss):
    assert_close(values(known(loss), signals()), values(loss, signals()))


def test_it_needs_what_the_loss_needs():
    assert build_loss("known_classes(loss=jacobian())").needs == {"teacher", "input_gradients"}


def test_it_is_not_linear_in_the_teacher():
    """Check the mark that keeps caches of drawn classes away, in which the classes not drawn look unknown."""
    assert not build_loss("known_classes(loss=kd())").linear and build_loss("kd()").linear


@pytest.mark.parametrize("loss", ["4", "None", "('kd',)"])
def test_what_is_no_loss_is_refused(loss):
    with pytest.raises(ConfigError, match=r"known_classes\(loss=...\): .* is no loss\. Give the spec string of one of"):
        build_loss(f"known_classes(loss={loss})")


@pytest.mark.parametrize("loss", ["cross_entropy()", "related_labels(edges=((0, 1),))"])
def test_a_loss_of_labels_is_refused(loss):  # it is infinite at a label of an unknown class
    with pytest.raises(ConfigError, match="does not say that it needs a teacher; give a divergence"):
        build_loss(f"known_classes(loss={loss})")


def test_a_cache_of_the_largest_logits_is_refused():
    seen = signals()
    sparse = SparseLogits(jnp.zeros((6, 2), jnp.int32), single(np.zeros((6, 2))), single(np.zeros(6)), 5)
    seen = replace(seen, teachers=(replace(seen.teachers[0], sparse=sparse),))
    fused = replace(seen.teachers[0], sparse=None)  # a mixture of two such caches has no `sparse`
    for teacher in (seen.teachers[0], fused):
        term = build_loss("known_classes(loss=kd())")
        with pytest.raises(ValueError, match="does not say which classes its teacher lacks; keep all logits"):
            term.apply({}, {}, replace(seen, teacher=teacher), key=jax.random.key(0))
