"""Tests of fusions against values by hand; `test_fusion_laws.py` tests what holds for all of them."""

import functools
import itertools
from dataclasses import replace

import batches
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close
from scipy.special import softmax

import jaxdistill.fusion  # noqa: F401  (registers the fusions)
from jaxdistill.core import registry
from jaxdistill.core.types import Outputs
from jaxdistill.fusion import gate
from jaxdistill.fusion.mixture import normalise_weights

KEY = jax.random.key(0)


def fused(spec: str, *probabilities, temperature=1.0, key=KEY, **batch) -> Outputs:
    """Fuse teachers with the given probabilities, each `[rows, classes]`, and return the fused outputs."""
    teachers = tuple(Outputs(np.log(np.float32(p))) for p in probabilities)
    rows = len(probabilities[0])
    seen = batches.signals(batch=(rows,), classes=len(probabilities[0][0]))
    given = {name: np.asarray(value) for name, value in batch.items()}
    seen = replace(seen, teachers=teachers, batch=seen.batch | given, temperature=temperature)
    return jax.device_get(compiled(spec)(seen, key))


@functools.cache
def compiled(spec: str):
    fusion = registry.fusions.build(spec, "fusion")
    return jax.jit(lambda seen, key: fusion.apply(*fusion.init(key, seen), seen, key=key)[0])


def test_surer_teachers_weigh_more():
    sure, even = [0.97, 0.01, 0.02], [1 / 3, 1 / 3, 1 / 3]
    entropy = -sum(p * np.log(p) for p in sure)
    said = fused("entropy", [sure], [even])
    assert_close(said.weights[:, 0], [np.log(3) / (entropy + np.log(3)), entropy / (entropy + np.log(3))])
    assert_close(np.exp(said.logits), said.weights[0] * np.asarray([sure]) + said.weights[1] * np.asarray([even]))
    thrice = fused("entropy", [sure], [even], [even])
    assert_close(thrice.weights[0], [(1 - entropy / (entropy + 2 * np.log(3))) / 2])


def test_the_entropies_are_those_of_unsoftened_teachers():
    hot, cold = (fused("entropy", [[0.9, 0.1]], [[0.5, 0.5]], temperature=t) for t in (1.0, 8.0))
    assert_close(hot.weights, cold.weights)


def test_teachers_weigh_by_the_probability_of_the_label():
    said = fused("confidence", [[0.9, 0.1]], [[0.2, 0.8]], label=[0])
    losses = -np.log([0.9, 0.2])
    softmax = np.exp(losses) / np.exp(losses).sum()
    assert_close(said.weights[:, 0], 1 - softmax)
    thrice = fused("confidence", [[1 - 1e-6, 1e-6]], [[1e-6, 1 - 1e-6]], [[1e-6, 1 - 1e-6]], label=[0])
    assert_close(thrice.weights[:, 0], [0.5, 0.25, 0.25], atol=1e-5)  # the right one never has more than 1 / (K - 1)


def test_for_a_text_one_teacher_is_drawn_for_all_tokens():
    seen = batches.signals(batch=(12, 5), classes=3)
    draw = np.random.default_rng(0)
    teachers = tuple(Outputs(np.float32(draw.normal(size=(12, 5, 3)))) for _ in range(2))
    said = jax.device_get(compiled("sampled")(replace(seen, teachers=teachers), KEY))
    assert said.weights.shape == (2, 12, 5)
    assert (said.weights == said.weights[:, :, :1]).all() and set(said.weights[0, :, 0]) == {0, 1}
    chosen = np.where(said.weights[0, ..., None] == 1, teachers[0].logits, teachers[1].logits)
    assert_close(softmax(said.logits, -1), softmax(chosen, -1))


def test_what_a_gate_reads_of_teachers_is_as_by_hand():
    p = np.float32([[[0.7, 0.2, 0.1]], [[0.1, 0.1, 0.8]], [[0.2, 0.6, 0.2]]])  # of three teachers, for one row
    seen = replace(batches.signals(batch=(1,), classes=3), teachers=tuple(Outputs(jnp.log(each)) for each in p))
    read = {name: np.asarray(reader(seen)) for name, reader in gate.READERS.items() if name not in ("student", "image")}
    apart = lambda a, b: 0.5 * np.abs(p[a] - p[b]).sum(-1)
    assert_close(read["disagreement"], np.stack([apart(0, 1), apart(0, 2), apart(1, 2)], -1))
    assert_close(read["entropies"], -np.sum(p * np.log(p), -1).T)
    assert_close(read["teachers"], np.log(p).transpose(1, 0, 2).reshape(1, 9))
    image = jnp.asarray([[[[0], [51]], [[102], [255]]]], jnp.uint8)
    assert_close(gate.READERS["image"](replace(seen, batch={"image": image})), np.float32([[0, 0.2, 0.4, 1]]))


def test_one_teacher_is_drawn_for_each_row_in_proportion_to_the_weights():
    rows = 4000
    alone = [np.tile(np.eye(3)[k] * 0.97 + 0.01, (rows, 1)).tolist() for k in range(3)]
    said = fused("sampled(weights=(1, 2, 5))", *alone)
    assert set(np.unique(said.weights)) == {0.0, 1.0}
    assert_close(said.weights.mean(1), [1 / 8, 2 / 8, 5 / 8], atol=0.02)
    other = fused("sampled(weights=(1, 2, 5))", *alone, key=jax.random.key(1))
    assert 0.3 < (said.weights == other.weights).all(0).mean() < 0.7
    there = np.tile([1, 1, 0], (rows, 1))
    assert_close(
        fused("sampled(weights=(1, 2, 5))", *alone, present=there).weights.mean(1), [1 / 3, 2 / 3, 0], atol=0.03
    )


@pytest.mark.parametrize("spec", ["sampled(weights=(1, 2))", "average(weights=(1, 2))"])
def test_weights_must_be_one_for_each_teacher(spec):
    with pytest.raises(ValueError, match="2 weights for 3 teachers"):
        fused(spec, *[[[0.5, 0.5]]] * 3)


def test_who_is_present_is_told_for_every_row():
    with pytest.raises(ValueError, match=r"present is \[1, 2\], needed \[1, 3\]"):
        fused("average", *[[[0.5, 0.5]]] * 3, present=np.ones((1, 2)))


def gradients(said: np.ndarray, teachers: list[np.ndarray]) -> np.ndarray:
    """Return the gradient in the student's logits for each teacher, in float64, `[teachers, rows * classes]`."""
    softmax = lambda z: np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    return np.stack([(softmax(said) - p).reshape(-1) for p in teachers])


def test_two_teachers_gradients_are_combined_to_the_shortest():
    seen = batches.signals(batch=(3,), classes=3, depths=(2, 3))
    weights = lambda seen: np.asarray(compiled("min_norm(normalize=False)")(seen, KEY).weights)
    student, *teachers = (np.asarray(x.logits, np.float64) for x in (seen.student, *seen.teachers))
    softmax = lambda z: np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    a, b = gradients(student, [softmax(t) for t in teachers])
    share = np.clip((b - a) @ b / ((a - b) @ (a - b)), 0, 1)
    assert 0.05 < share < 0.95
    assert_close(weights(seen), np.tile([[share], [1 - share]], 3))
    masked = replace(seen, mask=np.float32([1.0, 1.0, 0.0]))
    a, b = (x.reshape(3, 3)[:2].reshape(-1) for x in (a, b))
    share = np.clip((b - a) @ b / ((a - b) @ (a - b)), 0, 1)
    assert_close(weights(masked)[0, 0], share)


@pytest.mark.parametrize("each", ["batch", "row"])
def test_of_three_teachers_two_that_say_the_same_share_one_vote(each):
    good, bad = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]]), np.array([[0.1, 0.2, 0.7], [0.3, 0.1, 0.6]])
    said = fused(f"min_norm(each='{each}')", good, bad, bad)
    assert_close(said.weights, np.tile([[0.5], [0.25], [0.25]], 2), atol=1e-4)


def test_each_row_may_have_weights_of_its_own():
    seen = batches.signals(batch=(2,), depths=(2, 3))
    weights = lambda each, seen: np.asarray(compiled(f"min_norm(normalize=False, each='{each}')")(seen, KEY).weights)
    whole = weights("row", seen)
    for row in range(2):
        assert_close(whole[:, row], weights("batch", batches.at_rows(seen, np.asarray([row])))[:, 0])
    assert np.abs(whole[:, 0] - whole[:, 1]).max() > 0.05


def test_mixing_first_and_softening_afterwards_is_another_objective():
    """Check that `average` softens before it mixes. Else kd's gradient q - p, with the mixture p, is off by a third."""
    one, other, temperature = np.array([[0.98, 0.015, 0.005]]), np.array([[0.02, 0.08, 0.9]]), 4.0
    soft = lambda p: p ** (1 / temperature) / (p ** (1 / temperature)).sum(-1, keepdims=True)
    mixed = (soft(one) + soft(other)) / 2
    out = fused("average", one, other, temperature=temperature)
    np.testing.assert_allclose(softmax(out.logits / temperature, -1), mixed, rtol=1e-5)
    uniform = np.full_like(one, 1 / 3)
    right, twin = uniform - mixed, uniform - soft((one + other) / 2)
    assert np.linalg.norm(right - twin) > 0.3 * np.linalg.norm(right)


@pytest.mark.parametrize("present", list(itertools.product((False, True), repeat=3)))
def test_weights_of_zero_are_shared_equally_by_those_who_are_present(present):
    is_present = np.array(present)[:, None]
    found = np.asarray(normalise_weights(jnp.zeros((3, 1)), jnp.asarray(is_present)))
    np.testing.assert_allclose(found, is_present / max(is_present.sum(), 1))


def test_the_top_teachers_of_a_gate_are_among_those_who_are_present():
    """Check that a new gate, whose weights are all equal, leaves out an absent teacher, though ties go to the first."""
    seen = batches.signals(depths=(4, 4, 4))
    rows = seen.mask.shape[0]
    absent = replace(seen, batch={**seen.batch, "present": jnp.tile(jnp.array([0, 1, 1]), (rows, 1))})
    made = registry.fusions.build("gate(top=2)", "fusion")
    params, state = made.init(KEY, absent)
    weights = made.apply(params, state, absent, key=KEY)[0].weights
    assert_close(weights, np.repeat([[0.0], [0.5], [0.5]], rows, axis=1))


@pytest.mark.parametrize("first", [0, 1])
def test_the_mean_of_logits_is_minus_infinity_where_one_teacher_excludes_a_class(first):
    teachers = [Outputs(jnp.asarray([[-jnp.inf, 1.0, 2.0]])), Outputs(jnp.asarray([[5.0, 3.0, 4.0]]))]
    seen = replace(batches.signals(batch=(1,), classes=3), teachers=(teachers[first], teachers[1 - first]))
    assert_close(compiled("average(of='logits')")(seen, KEY).logits, [[-np.inf, 2.0, 3.0]])


@pytest.mark.parametrize("name", ["confidence", "entropy", "min_norm"])
def test_the_mean_may_be_that_of_logits(name):
    p = [[[0.7, 0.2, 0.1]], [[0.1, 0.2, 0.7]], [[0.2, 0.5, 0.3]]]
    out = fused(f"{name}(of='logits')", *p, label=[0])
    assert_close(out.logits, np.einsum("kr,krc->rc", out.weights, np.log(p)), rtol=1e-5)
