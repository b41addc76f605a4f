"""Tests of the loss `hard`: hardness, weights and selected rows by hand, curricula, and refused arguments."""

import functools
from dataclasses import replace

import batches
import jax
import numpy as np
import pytest
from checks import assert_close
from scipy.special import log_softmax, softmax
from terms import build_loss, loss_values

from jaxdistill.core import hardness, registry
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.losses.logits.hard import hardness_weights
from jaxdistill.losses.task.cross_entropy import softmax_cross_entropy
from jaxdistill.losses.term import stateless

KEY = jax.random.key(0)
P = np.array([[0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])


@pytest.mark.parametrize("form", [lambda measure: measure, jax.jit], ids=["numpy", "jax"])
def test_measures_by_hand(form):
    disagreement = form(hardness.disagreement)
    assert_close(form(hardness.entropy)(P), np.array([1.5, 0, 2]) * np.log(2))
    assert_close(form(hardness.margin)(P), np.array([0.75, 0, 1]))
    # of a sure and an unsure model: H(5/8, 1/8, 1/8, 1/8) - (0 + 2 log 2) / 2
    mixed = -(5 / 8 * np.log(5 / 8) + 3 / 8 * np.log(1 / 8)) - np.log(2)
    assert_close(disagreement(P[[1, 2], None]), np.array([mixed]))
    assert_close(disagreement(P[[2, 2], None]), np.array([0.0]))
    assert_close(disagreement(np.eye(4)[:2, None]), np.array([np.log(2)]))


HARD, COUNTS = np.float32([1, 4, 2, 3, 9]), np.array([1, 1, 1, 1, 0]) == 1
weighed = jax.jit(hardness_weights, static_argnums=(3, 4))


@pytest.mark.parametrize(
    ("share", "power", "easiest", "expected"),
    [
        (1.0, 1.0, False, [0.4, 1.6, 0.8, 1.2, 0]),
        (1.0, 0.0, False, [1, 1, 1, 1, 0]),
        (1.0, 2.0, False, [4 / 30, 64 / 30, 16 / 30, 36 / 30, 0]),
        (0.5, 0.0, False, [0, 2, 0, 2, 0]),
        (0.5, 1.0, False, [0, 16 / 7, 0, 12 / 7, 0]),
        (0.5, 0.0, True, [2, 0, 2, 0, 0]),
        (0.01, 0.0, False, [0, 4, 0, 0, 0]),  # at least one row is selected
    ],
)
def test_weights_by_hand(share, power, easiest, expected):
    assert_close(weighed(HARD, COUNTS, share, power, easiest), np.asarray(expected))


def test_rows_alike_share_a_fate_and_a_batch_that_is_easy_is_a_mean():
    every = np.ones(4, bool)
    assert_close(weighed(np.float32([2, 1, 2, 2]), every, 0.25, 0.0, False), [4 / 3, 0, 4 / 3, 4 / 3])
    assert_close(weighed(np.zeros(4, np.float32), every, 1.0, 1.0, False), np.ones(4))
    assert_close(weighed(HARD, np.zeros(5, bool), 0.5, 1.0, False), np.zeros(5))


def mean(spec: str, seen) -> float:
    return float(compiled(spec)(seen))


@functools.cache
def compiled(spec: str):
    minimised = objective({"term": WeightedTerm(build_loss(spec))}, registry.fusions.build("average", ""))

    def apply(seen):
        params, state = minimised.init(KEY, {"train": seen})
        return minimised.apply(params, state, {"train": seen}, key=KEY)[0]["term"].compute()

    return jax.jit(apply)


@pytest.mark.sampled("margin")
@pytest.mark.parametrize("by", ["entropy", "margin", "disagreement", "loss"])
def test_the_mean_is_that_of_the_weighed_rows(by):
    seen = batches.signals(depths=(2, 2))
    seen = replace(seen, mask=np.float32([1, 1, 1, 0, 1, 1]))
    p = np.stack([softmax(np.asarray(t.logits), -1) for t in seen.teachers]).astype(float)
    q = log_softmax(np.asarray(seen.student.logits), -1).astype(float)
    values = (p.mean(0) * (np.log(p.mean(0)) - q)).sum(-1)
    measures = {"entropy": hardness.entropy, "margin": hardness.margin}
    h = {"loss": values, "disagreement": hardness.disagreement(p)}.get(by)
    h = measures[by](p.mean(0)) if h is None else h
    rows = [0, 1, 2, 4, 5]
    spec = f"hard(loss=kd(temperature=1.0), by='{by}'"
    assert_close(mean(f"{spec})", seen), (h * values)[rows].sum() / h[rows].sum())
    best = sorted(rows, key=lambda row: -h[row])
    assert_close(mean(f"{spec}, share=0.4, power=0.0)", seen), values[best[:2]].mean())
    assert_close(mean(f"{spec}, share=0.4, power=0.0, first='easiest')", seen), values[best[-2:]].mean())


def test_a_curriculum_ends_with_all_rows():
    seen = batches.signals()
    spec = "hard(loss=kd(), share=linear(start=0.34, end=1.0), first='easiest', power=0.0)"
    at = lambda step: mean(spec, replace(seen, step=np.int32(step)))
    whole = mean("kd()", seen)
    assert abs(at(0) - whole) > 0.01
    assert_close(at(100), whole)


def test_tokens_are_ranked_as_rows_are_and_a_loss_keeps_its_params_and_its_own_mask():
    seen = batches.signals(batch=(2, 3))
    values = loss_values("cross_entropy", seen).ravel()
    assert_close(
        mean("hard(loss=cross_entropy(), by='loss', share=0.34, power=0.0)", seen), np.sort(values)[-2:].mean()
    )
    spec = "hard(loss=hidden(layers='last'), by='loss')"
    assert build_loss(spec).init(KEY, seen)[0] and loss_values(spec, seen).shape == (2, 3)


def test_the_weight_of_a_row_is_its_loss_also_below_one():
    seen = batches.signals()
    values = loss_values("jsd(temperature=1.0)", seen)
    values = values[np.asarray(seen.mask) != 0]
    assert values.max() < 1
    assert_close(mean("hard(loss=jsd(temperature=1.0), by='loss')", seen), (values**2).sum() / values.sum())


def test_a_negative_loss_has_no_weight():
    @registry.losses.register
    def lowered(by: float):
        return stateless(lambda signals: softmax_cross_entropy(signals.student.logits, signals.batch["label"]) - by)

    seen = batches.signals()
    values = loss_values("cross_entropy", seen)[np.asarray(seen.mask) != 0]
    by = float(np.median(values))
    values = values - by
    weights = np.maximum(values, 0)
    assert_close(
        mean(f"hard(loss=lowered(by={by}), by='loss')", seen), (weights * values).sum() / weights.sum(), rtol=1e-4
    )


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("hard(loss=kd(), share=0.0)", "share must stay above 0"),
        ("hard(loss=kd(), share=linear(start=0.5, end=1.5))", "share must be at most 1, but it reaches 1.5"),
        ("hard(loss=kd(), power=-1.0)", "power must be 0 or more"),
        ("hard(loss=kd(), by='loudness')", "'entropy', 'margin', 'disagreement', 'loss'"),
        ("hard(loss=kdd())", "unknown loss 'kdd'"),
    ],
)
def test_a_mistake_is_told(spec, said):
    with pytest.raises(ValueError, match=said):
        build_loss(spec)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("hard(loss=kd(), by='disagreement')", "needs two teachers or more; there are 1"),
        ("hard(loss=decay(), by='loss')", "one value per row; this loss gives values of shape []"),
    ],
)
def test_what_cannot_be_weighed_is_told_on_shapes(spec, said):
    with pytest.raises(ValueError, match=said.replace("[", r"\[").replace("]", r"\]")):
        mean(spec, batches.signals())
