"""Tests of losses of logits: T^2, masks, factored heads, `ttm` and `standardized`; see also `test_divergences.py`."""

from dataclasses import replace
from typing import Any

import batches
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import drawn_logits as drawn
from batches import signals
from checks import all_finite, assert_close, softmax
from terms import build_loss
from terms import loss_values as values

from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.types import Factored, Outputs
from jaxdistill.losses.logits.dkd import other_divergence, target_divergence
from jaxdistill.losses.logits.jsd import generalized_jsd, normalized_jsd
from jaxdistill.losses.logits.kd import kl_divergence
from jaxdistill.losses.logits.logit_mse import mean_squared_error
from jaxdistill.losses.logits.reverse_kl import reverse_kl_divergence
from jaxdistill.losses.logits.skew_kl import skew_divergence
from jaxdistill.losses.logits.skew_reverse_kl import detached_skew_reverse_divergence, skew_reverse_divergence
from jaxdistill.losses.logits.standardized import z_score
from jaxdistill.losses.logits.taid import interpolated_cross_entropy

KEY = jax.random.key(0)

PAIRS = (  # (student, teacher) -> value, each finite whatever the teacher masks
    kl_divergence,
    reverse_kl_divergence,
    lambda s, t: generalized_jsd(s, t, 0.3),
    lambda s, t: normalized_jsd(s, t, 0.9),
    lambda s, t: skew_divergence(s, t, 0.1),
    lambda s, t: skew_reverse_divergence(s, t, 0.1),
    lambda s, t: detached_skew_reverse_divergence(s, t, 0.1),
    lambda s, t: interpolated_cross_entropy(s, t, 0.4),
    lambda s, t: target_divergence(s, t, jnp.zeros(s.shape[0], int)),
    lambda s, t: other_divergence(s, t, jnp.zeros(s.shape[0], int)),
)


# All losses of logits


@pytest.mark.parametrize(
    "spec",
    [
        "kd(temperature=3.0, {})",
        "dkd(temperature=3.0, {})",
        "dist(temperature=3.0, {})",
        "jsd(temperature=3.0, {})",
        "reverse_kl(temperature=3.0, {})",
        "skew_kl(temperature=3.0, version='v1', {})",
        "skew_reverse_kl(temperature=3.0, {})",
        "taid(floor=0.4, temperature=3.0, {})",
        "standardized(loss=kd(temperature=3.0, {}))",
    ],
)
def test_the_factor_of_t_squared_is_there_or_not(spec):
    seen = signals()
    without = values(spec.format("scale_t2=False"), seen)
    assert_close(values(spec.format("scale_t2=True"), seen), 9 * without)
    softened = replace(seen, **{k: scaled(getattr(seen, k), 1 / 3) for k in ("student", "teachers")})
    if "standardized" not in spec:  # `standardized` removes the scale of the logits
        assert_close(without, values(spec.replace("3.0", "1.0").format("scale_t2=False"), softened))


def scaled(tree: Any, factor: float) -> Any:
    if isinstance(tree, tuple):
        return tuple(scaled(each, factor) for each in tree)
    return replace(tree, logits=np.float32(factor) * np.asarray(tree.logits))


@pytest.mark.sampled("[0-3]")
@pytest.mark.parametrize("loss", PAIRS, ids=range(len(PAIRS)))
def test_a_class_that_both_mask_counts_nothing(loss):
    student, teacher = drawn(0, 4, 6)
    hide = lambda z: jnp.where(jnp.arange(6) < 4, z, -jnp.inf)
    both = jax.jit(jax.value_and_grad(lambda s, t: loss(hide(s), hide(t)).sum(), (0, 1)))
    value, gradients = both(student, teacher)
    assert_close(value, np.sum(jax.jit(loss)(student[:, :4], teacher[:, :4])))
    assert all_finite(gradients)


@pytest.mark.sampled("[0-3]")
@pytest.mark.parametrize("loss", PAIRS, ids=range(len(PAIRS)))
def test_a_class_that_the_teacher_masks_is_as_one_that_it_gives_almost_nothing(loss):
    """Check that the value and gradient are finite, and that the value is the limit for a logit of -60.

    Two are not this limit: the reverse KL, and the divergence over all classes but the label if only that is left.
    """
    student, teacher = drawn(1, 4, 5)
    at = lambda s, t, has, hidden: loss(s, jnp.where(has, t, hidden)).sum()
    both = jax.jit(jax.value_and_grad(at, (0, 1)))
    for kept in ((0, 2, 3), (0,), (3,), (2, 3)):
        has = np.isin(np.arange(5), kept)
        masked, nearly = (both(student, teacher, has, hidden) for hidden in (np.float32(-np.inf), np.float32(-60)))
        assert all_finite(masked)
        if loss is reverse_kl_divergence:
            assert nearly[0] > masked[0] + 10
        elif loss is PAIRS[-1] and kept == (0,):
            assert masked[0] == 0
        else:
            assert_close(masked, nearly, atol=1e-5)


def of_tokens(vocabulary: int = 7) -> batches.Signals:
    """Build sequences, some tokens masked, with factored heads of student and teacher."""
    rng = np.random.default_rng(3)
    draw = lambda *shape: batches.single(rng.normal(size=shape))
    head = lambda width: Outputs(Factored(draw(4, 8, width), draw(width, vocabulary), draw(vocabulary)))
    mask = batches.single(rng.random((4, 8)) < 0.7)
    seen = replace(signals(batch=(4, 8), classes=vocabulary), student=head(5), teachers=(head(6),))
    return replace(seen, mask=mask, batch={"label": seen.batch["label"]})


TERMS = (
    *("dist", "dkd", "jsd", "reverse_kl", "skew_kl", "skew_reverse_kl(version='v2')"),
    *("standardized(loss=dkd(temperature=2.0))", "cross_entropy(label_smoothing=0.1)"),
    "taid(floor=0.4)",
)


@pytest.mark.slow
def test_a_factored_head_in_pieces_is_the_head_in_one():
    terms, seen = {spec: WeightedTerm(build_loss(spec)) for spec in TERMS}, of_tokens()

    def run(chunks: int, student: Outputs, teachers: tuple[Outputs, ...]) -> Any:
        minimised = objective(terms, registry.fusions.build("single", ""), chunks)
        given = {"train": replace(seen, student=student, teachers=teachers)}
        params, state = minimised.init(KEY, given)
        value, (means, state) = minimised.loss(params, state, given, minimised.weights(0), key=KEY)
        return value, ({name: mean.compute() for name, mean in means.items()}, state)

    gradient = lambda chunks: jax.jit(jax.value_and_grad(lambda *heads: run(chunks, *heads), (0, 1), has_aux=True))
    whole = gradient(1)(seen.student, seen.teachers)
    pieces = gradient(4)(seen.student, seen.teachers)
    assert_close(pieces, whole, rtol=2e-5, atol=1e-5)
    dense = jax.jit(run, static_argnums=0)(1, seen.student.dense(), tuple(t.dense() for t in seen.teachers))
    assert_close(whole[0], dense)
    assert whole[0][1][1]["terms"]["taid(floor=0.4)"]["loss"] == pytest.approx(whole[0][1][0]["taid(floor=0.4)"])


# Transformed teacher


@pytest.mark.parametrize("weighted", [False, True])
def test_a_transformed_teacher_is_a_power_of_itself_and_the_student_is_as_it_is(weighted):
    seen = signals()
    powers = softmax(seen.teachers[0].logits) ** (1 / 3)  # as published code writes it
    total = powers.sum(-1)
    p, q = powers / total[:, None], softmax(seen.student.logits)
    expected = (p * np.log(p / q)).sum(-1) * (total if weighted else 1)
    assert_close(values(f"ttm(temperature=3.0, weighted={weighted})", seen), expected)


def test_a_transformed_teacher_by_hand():
    seen = signals(classes=2)
    even = np.zeros_like(seen.student.logits)
    four = even + np.log(np.float32([4, 1]))  # (0.8, 0.2), whose roots are as 2 to 1 and add up to 3 / sqrt(5)
    seen = replace(seen, student=replace(seen.student, logits=even), teachers=(Outputs(four),))
    divergence = np.log(2) - (np.log(3) - 2 / 3 * np.log(2))
    assert_close(values("ttm(temperature=2.0)", seen), np.full(6, divergence))
    assert_close(values("ttm(temperature=2.0, weighted=True)", seen), np.full(6, divergence * 3 / np.sqrt(5)))


# Standardised


def test_z_scores_by_hand():
    z, score = np.float32([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]]), lambda z: np.asarray(jax.jit(z_score)(z))
    deviation = np.sqrt((4 + 1 + 9) / 2)
    assert_close(score(z), [[-2 / deviation, -1 / deviation, 3 / deviation], [0, 0, 0]])
    masked = np.pad(z, ((0, 0), (0, 2)), constant_values=-np.inf)
    assert_close(score(masked)[:, :3], score(z))
    assert (score(masked)[:, 3:] == -np.inf).all()
    assert all_finite(jax.jit(jax.grad(lambda x: jnp.where(jnp.isfinite(x), z_score(x), 0.0).sum()))(masked))
    of_equal_logits = jax.jit(jax.jacobian(z_score))(jnp.full(3, 5.0))  # the deviation is 0, and the formula adds 1e-7
    np.testing.assert_allclose(of_equal_logits, (np.eye(3) - 1 / 3) / 1e-7, rtol=1e-5)


def test_where_a_teacher_masks_every_class_there_is_nothing_to_match():
    student, nothing = jnp.asarray([[1.0, 2.0], [3.0, 5.0]]), jnp.asarray([[-jnp.inf, -jnp.inf], [1.0, 1.0]])
    value, slope = jax.value_and_grad(lambda x: mean_squared_error(x, nothing).sum())(student)
    assert value == 10.0 and slope.tolist() == [[0, 0], [2, 4]]


def test_a_standardised_loss_does_not_see_how_large_logits_are():
    seen = signals()
    large = replace(seen, student=replace(seen.student, logits=7 * np.asarray(seen.student.logits) + 3))
    for loss in ("kd(temperature=2.0)", "dkd(temperature=2.0)", "jsd()", "dist()"):
        assert_close(values(f"standardized(loss={loss})", large), values(f"standardized(loss={loss})", seen))
        assert np.abs(values(loss, large) - values(loss, seen)).max() > 0.01


def test_a_standardised_loss_is_where_and_what_its_inner_one_is():
    for inner in ("kd(temperature=2.0)", "dist(temperature=3.0)", "taid(floor=0.5)"):
        outer, term = build_loss(f"standardized(loss={inner})"), build_loss(inner)
        assert (outer.local, outer.needs, outer.follow is None) == (term.local, term.needs, term.follow is None)
        step = jnp.zeros((), jnp.int32)
        assert outer.temperature(step) == term.temperature(step)


# Mistakes


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("jsd(beta=1.5)", "beta must lie between 0 and 1"),
        ("jsd(temperature=0.0)", "temperature must stay above 0"),
        ("reverse_kl(temperature=-1.0)", "temperature must stay above 0"),
        ("skew_kl(alpha=0.0)", "alpha must lie between 0 and 1; got 0.0. For alpha = 0 use kd or reverse_kl"),
        ("skew_reverse_kl(alpha=1.0)", "alpha must lie between 0 and 1"),
        ("skew_kl(version='v3')", "expected"),
        ("dkd(beta=-1.0)", "alpha and beta must be 0 or more"),
        ("dist(gamma=-1.0)", "beta and gamma must be 0 or more"),
        ("taid(floor=linear(start=-0.1, end=1.0))", "floor must lie between 0 and 1, but it reaches -0.1"),
        ("taid(floor=1.5)", "floor must lie between 0 and 1, but it reaches 1.5"),
        ("taid(floor=0.4, decay=1.0)", "decay at least 0 and below 1"),
        ("taid", "floor"),
        ("standardized", "loss"),
        ("standardized(loss=kdd())", "unknown loss 'kdd'"),
    ],
)
def test_mistakes_are_told_before_anything_compiles(spec, said):
    with pytest.raises(ConfigError, match=said):
        build_loss(spec)
