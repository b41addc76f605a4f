"""Tests of laws that must hold for every registered fusion."""

import functools
from collections.abc import Callable
from dataclasses import replace

import batches
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import all_finite, assert_close, assert_same
from examples import FUSIONS, every

from jaxdistill.core import registry
from jaxdistill.core.types import Array, Outputs, Signals

KEY = jax.random.key(0)


def on_logits(function, outputs: Outputs) -> Outputs:
    return replace(outputs, logits=function(outputs.logits))


def one_hot(logits: Array) -> Array:
    return 1e4 * jax.nn.one_hot(logits.argmax(-1), logits.shape[-1])


def without_odd_classes(logits: Array) -> Array:
    return jnp.where(jnp.arange(logits.shape[-1]) % 2 == 1, -jnp.inf, logits)


@functools.cache
def fused_by(spec: str) -> Callable[[Signals], Outputs]:
    fusion = registry.fusions.build(spec, "fusion")
    return jax.jit(lambda seen: fusion.apply(*fusion.init(KEY, seen), seen, key=KEY)[0])


def fuse(spec: str, seen: Signals, temperature: float = 1.0) -> Outputs:
    return fused_by(spec)(replace(seen, temperature=jnp.asarray(temperature, jnp.float32)))


def softened(outputs: Outputs, temperature: float) -> Array:
    return jax.nn.softmax(outputs.logits / temperature)


TEMPERATURES = pytest.mark.parametrize("temperature", [1.0, 4.0])


@every(FUSIONS)
@TEMPERATURES
def test_fusing_one_teacher_is_the_identity(example, temperature):
    seen = batches.signals()
    fused = softened(fuse(example.spec, seen, temperature), temperature)
    assert_close(fused, softened(seen.teachers[0], temperature))


@every(FUSIONS)
@TEMPERATURES
def test_fusing_identical_teachers_gives_one_of_them(example, temperature):
    seen = batches.signals()
    seen = replace(seen, teachers=seen.teachers * 3)
    fused = softened(fuse(example.spec, seen, temperature), temperature)
    assert_close(fused, softened(seen.teachers[0], temperature))


@every(FUSIONS, symmetric=True)
@TEMPERATURES
def test_the_order_of_equal_teachers_does_not_matter(example, temperature):
    seen = batches.signals(depths=(4, 3, 2))
    other = replace(seen, teachers=seen.teachers[::-1])
    assert_close(
        softened(fuse(example.spec, other, temperature), temperature),
        softened(fuse(example.spec, seen, temperature), temperature),
    )


@every(FUSIONS)
@TEMPERATURES
@pytest.mark.parametrize("change", [lambda z: z, lambda z: 1e4 * z, one_hot, without_odd_classes])
def test_fused_teachers_are_a_distribution_with_a_finite_gradient(example, temperature, change):
    seen = batches.signals(depths=(4, 3, 2))
    seen = replace(seen, teachers=tuple(on_logits(change, teacher) for teacher in seen.teachers))

    def likelihood(teachers):
        fused = softened(fuse(example.spec, replace(seen, teachers=teachers), temperature), temperature)
        return jnp.sum(jnp.log(fused[:, 0] + 1e-3)), fused

    (_, fused), gradient = jax.value_and_grad(likelihood, has_aux=True)(seen.teachers)
    assert (fused >= 0).all()
    assert_close(fused.sum(-1), np.ones(6))
    assert all_finite(gradient)


@every(FUSIONS, draws=False)
def test_permuting_the_teachers_permutes_their_weights(example):
    seen = batches.signals(depths=(4, 3, 2))
    weights = fuse(example.spec, seen).weights
    if weights is None:  # `single` chooses one teacher by number, without weights
        return
    assert weights.shape == (3, 6)
    assert_close(weights.sum(0), np.ones(6))
    order = [2, 0, 1]
    permuted = fuse(example.spec, replace(seen, teachers=tuple(seen.teachers[k] for k in order)))
    if example.symmetric:
        assert_close(permuted.weights, weights[jnp.asarray(order)], atol=2e-5)  # some fusions find them by iteration


@pytest.mark.sampled("*-gate", "*-average", "*-min_norm")
@every(FUSIONS)
@pytest.mark.parametrize("nonsense", [0.0, jnp.nan])
def test_an_absent_teacher_has_no_weight_and_is_not_heard(example, nonsense):
    seen = batches.signals(depths=(4, 3, 2))
    if fuse(example.spec, seen).weights is None:
        return
    there = jnp.asarray([[1, 0, 1], [1, 0, 0]] * 3)
    spoilt = on_logits(lambda z: z * nonsense, seen.teachers[1])
    here = replace(seen, batch=seen.batch | {"present": there})
    fused = fuse(example.spec, replace(here, teachers=(seen.teachers[0], spoilt, seen.teachers[2])))
    assert not fused.weights[1].any() and not fused.weights[2, 1::2].any()
    assert_close(fused.weights.sum(0), np.ones(6))
    assert_close(softened(fused, 1.0)[1::2], softened(seen.teachers[0], 1.0)[1::2])
    gradient = jax.grad(lambda teachers: fuse(example.spec, replace(here, teachers=teachers)).logits[:, 0].sum())
    assert all_finite(gradient((seen.teachers[0], spoilt, seen.teachers[2])))
    nobody = replace(seen, batch=seen.batch | {"present": jnp.zeros((6, 3))})
    assert_close(softened(fuse(example.spec, nobody), 1.0), np.full((6, 5), 0.2))


@every(FUSIONS)
def test_of_a_label_that_is_no_class_a_fusion_is_nan_where_it_counts(example):
    """Check that a fusion that reads labels gives NaN for the label -1, which as an index would be the last class."""
    seen = replace(batches.signals(depths=(4, 3, 2)), mask=jnp.asarray([1.0, 1, 1, 1, 1, 0]))
    labelled = lambda label: replace(seen, batch=seen.batch | {"label": jnp.full(6, label)})
    first, last, none = (fuse(example.spec, labelled(label)).logits for label in (0, 4, -1))
    if (first == last).all():
        assert_same(none, first)
    else:
        assert np.isnan(none[:5]).all() and all_finite(none[5])


@TEMPERATURES
def test_the_mixture_is_the_mean_of_the_teachers_probabilities_at_the_temperature(temperature):
    seen = batches.signals(depths=(4, 3))
    p, q = (softened(teacher, temperature) for teacher in seen.teachers)
    even, uneven = (fuse(spec, seen, temperature) for spec in ("average", "average(weights=(3, 1))"))
    assert_close(jnp.exp(even.logits / temperature), (p + q) / 2)
    assert_close(jnp.exp(uneven.logits / temperature), 0.75 * p + 0.25 * q)


def test_the_mean_of_logits_is_weighted_too():
    seen = batches.signals(depths=(4, 3))
    fused = fuse("average(of='logits', weights=(1, 3))", seen)
    assert_close(fused.logits, 0.25 * seen.teachers[0].logits + 0.75 * seen.teachers[1].logits)


@pytest.mark.parametrize("of", ["probabilities", "logits"])
def test_a_teacher_of_weight_zero_is_absent_whatever_it_says(of):
    seen = batches.signals(depths=(4, 3))
    said = fuse(f"average(of='{of}', weights=(1, 0))", seen)
    for nonsense in (jnp.nan, -jnp.inf, jnp.inf):
        spoilt = on_logits(lambda z, x=nonsense: z.at[:, 0].set(x), seen.teachers[1])
        spoilt = fuse(f"average(of='{of}', weights=(1, 0))", replace(seen, teachers=(seen.teachers[0], spoilt)))
        assert_same(spoilt, said)


def test_weights_must_fit_the_teachers():
    seen = batches.signals(depths=(4, 3))
    for spec, problem in {
        "average(weights=(1, 2, 3))": "3 weights for 2 teachers",
        "average(weights=(-1, 2))": "at least 0",
        "average(weights=(0, 0))": "not all 0",
        "single(teacher=2)": "no teacher 2",
    }.items():
        with pytest.raises(ValueError, match=problem):
            fuse(spec, seen)


def test_a_single_teacher_is_handed_on_with_all_that_it_says():
    seen = batches.signals(depths=(4, 3))
    assert_same(fuse("single", seen), seen.teachers[0])
    assert_same(fuse("single(teacher=1)", seen), seen.teachers[1])
    assert_same(fuse("single(teacher=-1)", seen), seen.teachers[1])
