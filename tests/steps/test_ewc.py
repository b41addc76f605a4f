"""Tests of the step `ewc`: the Fisher information against its closed form, and updates by hand."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_close, assert_same, float64
from perceptrons import CLASSES, KEY, WIDTH, counted, rows
from terms import build_loss

from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.interfaces import Model
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.optim import optimizer
from jaxdistill.core.spec import parse
from jaxdistill.core.types import Outputs


def say(params, image):
    return image @ params["kernel"]


def apply(params, state, batch, *, train, key):
    return Outputs(say(params, batch["image"])), state


LINEAR = Model(lambda key, batch: ({"kernel": jax.random.normal(key, (WIDTH, CLASSES))}, {}), apply)


class World:
    """A step on a linear student without a teacher, with plain gradient descent at the given rate."""

    def __init__(self, spec: str, rate: float = 1.0):
        terms = {"cross_entropy": WeightedTerm(build_loss("cross_entropy"), 1.0)}
        update = optimizer(registry.optimizers.build("sgd(momentum=0.0)", ""), rate)
        given = (LINEAR, (), objective(terms, registry.fusions["single"]()), update)
        self.step = registry.steps.build(parse(spec, "")._replace(args=given), "step")
        self.batch = {"train": rows(0, 8)}
        self.start = jax.jit(self.step.init)(KEY, (), self.batch)
        self.update = jax.jit(self.step.update)

    def states(self, count: int) -> list:
        found = [self.start]
        for _ in range(count):
            found.append(self.update(found[-1], (), self.batch)[0])
        return found


def loss(params, batch):
    said = say(params, batch["image"])
    return counted(optax.softmax_cross_entropy_with_integer_labels(said, batch["label"]), batch)


def test_importance_is_the_diagonal_of_the_fisher_information():
    """Check against the mean of x_i^2 p_c (1 - p_c) for a linear student; the data's labels would give another."""
    world = World("ewc(weight=0.0, every=1000, momentum=0.0)", rate=0.0)

    def recent(key):
        ts, _ = world.step.update(replace(world.start, key=key), (), world.batch)
        return ts.state["anchor"].recent["kernel"]

    found = jax.jit(jax.vmap(recent))(jax.random.split(KEY, 2000))
    rows, params = world.batch["train"], world.start.params["student"]
    p = jax.nn.softmax(say(params, rows["image"]))[:6]
    image = rows["image"][:6]  # the other 2 rows are masked
    exact = jnp.mean(image[:, :, None] ** 2 * (p * (1 - p))[:, None, :], axis=0)
    np.testing.assert_allclose(found.mean(0), exact, rtol=0.2)
    score = image[:, :, None] * (jax.nn.one_hot(rows["label"][:6], CLASSES) - p)[:, None, :]
    assert not np.allclose(jnp.mean(score**2, axis=0), exact, rtol=0.3)
    assert not np.allclose(found.mean(0), jnp.mean(score, axis=0) ** 2, rtol=0.3)


def test_the_student_is_pulled_to_where_the_last_task_ended_by_what_mattered_then():
    world = World("ewc(weight=3.0, every=2, momentum=0.5)", rate=0.5)
    slope = jax.jit(jax.grad(loss))
    anchor, fisher = world.start.params["student"], jax.tree.map(jnp.zeros_like, world.start.params["student"])
    for number, (old, new) in enumerate(itertools.pairwise(world.states(6)), 1):
        student = old.params["student"]
        free = jax.tree.map(lambda s, g: s - 0.5 * g, student, slope(student, world.batch["train"]))
        held = jax.tree.map(lambda s, f, a: (s + 3.0 * f * a) / (1 + 3.0 * f), free, fisher, anchor)
        assert_close(new.params["student"], held, atol=1e-5)
        if number % 2 == 0:
            anchor, fisher = new.params["student"], optax.tree.add(fisher, new.state["anchor"].recent)
        assert_same(new.state["anchor"].params, anchor)
        assert_close(new.state["anchor"].fisher, fisher)
    assert optax.tree.norm(optax.tree.sub(free, held)) > 1e-3


def test_the_reported_distance_is_half_the_square_from_the_anchor_weighted_by_importance():
    world = World("ewc(weight=3.0, every=2, momentum=0.5)", rate=0.5)
    old = world.states(3)[-1]
    new, metrics = world.update(old, (), world.batch)
    anchor, student = old.state["anchor"], new.params["student"]["kernel"]
    by_hand = np.sum(float64(anchor.fisher["kernel"]) * float64(student - anchor.params["kernel"]) ** 2) / 2
    assert by_hand > 1e-6
    assert_close(metrics["anchor/distance"].compute(), by_hand, rtol=1e-4)


def test_however_heavy_the_student_stays_between_the_anchor_and_where_it_would_go():
    """Check a pull of weight 1e6; as a part of the gradient, it would overshoot and diverge."""
    light, heavy = World("ewc(weight=0.0, every=1)", rate=0.5), World("ewc(weight=1e6, every=1)", rate=0.5)
    first, free, held = light.states(2)[1:], light.states(2)[2], heavy.states(2)[2]
    distance = lambda ts: optax.tree.norm(optax.tree.sub(ts.params["student"], first[0].params["student"]))
    assert distance(held) < distance(free)


def test_without_weight_it_is_plain_descent():
    held, plain = World("ewc(weight=0.0, every=2)"), World("offline")
    assert_close(held.states(4)[-1].params, plain.states(4)[-1].params)


@pytest.mark.parametrize("spec", ["ewc(weight=-1.0, every=1)", "ewc(weight=1.0, every=0)"])
def test_numbers_out_of_range_are_refused(spec):
    with pytest.raises(ConfigError, match="weight must be at least 0, every at least 1"):
        World(spec)
