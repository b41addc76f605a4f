"""Tests of the laws that every registered step and optimiser must keep."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import batches
import examples
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import all_finite, assert_close, assert_same
from examples import OPTIMIZERS, STEPS, every
from terms import build_loss

from jaxdistill.core import registry
from jaxdistill.core.checkpoint import flatten, unflatten
from jaxdistill.core.interfaces import Model, Step
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.optim import optimizer
from jaxdistill.core.spec import parse
from jaxdistill.core.types import Array, Variables

KEY = jax.random.key(0)


# Steps


class World(NamedTuple):
    """A step with its compiled functions, the variables of its frozen teachers, and a batch."""

    step: Step
    frozen: tuple[Variables, ...]
    batch: dict[str, dict[str, Array]]
    init: Callable[..., Any]
    update: Any


def build_step(spec: str, student: Model, teachers: tuple[Model, ...], update: optax.GradientTransformation) -> Step:
    soft = build_loss("kd(temperature=linear(start=8.0, end=2.0))")._replace(stream=example_of(spec).stream)
    terms = {
        "kd": WeightedTerm(soft, 0.5),
        "cross_entropy": WeightedTerm(build_loss("cross_entropy"), 0.5),
        "hidden": WeightedTerm(build_loss("hidden(layers='last')"), 0.1),
        "decay": WeightedTerm(build_loss("decay(towards='teacher')"), 1e-4),
    }
    parsed = parse(spec, "step")
    minimised = objective(terms, registry.fusions.build(examples.FUSED_BY.get(parsed.name, "average"), "fusion"))
    parts = {"student": student, "teachers": teachers, "objective": minimised, "optimizer": update}
    return registry.steps.build(parsed._replace(kwargs=parsed.kwargs | parts), "step", examples.TIMED)


MODELS = {
    kind: tuple(registry.models.build(spec, "model") for spec in specs)
    for kind, specs in {
        "image": (
            "mlp(widths=(32, 32), classes=4)",
            "mlp(widths=(32, 32), classes=4)",  # the student's shapes, which `decay(towards='teacher')` needs
            "mlp(widths=(12, 16), classes=4)",
        ),
        "tokens": tuple(
            f"decoder(vocabulary=4, width={width}, depth=1, heads=2, kv_heads=1, head_size=4, ffn=16)"
            for width in (8, 8, 12)
        ),
    }.items()
}
ROWS = {
    "image": batches.images(rows=32, size=4, classes=4),
    "tokens": batches.tokens(rows=32, classes=4),
}


def example_of(spec: str) -> examples.Example:
    return next(example for each in STEPS.values() for example in each if example.spec == spec)


@functools.cache
def world(spec: str, direction: str = "adamw", poison: bool = False) -> World:
    example = example_of(spec)
    student, *teachers = MODELS[example.inputs]
    if example.alike:
        teachers[0] = student
    rows = ROWS[example.inputs]
    frozen = tuple(first_values(t, n, example.inputs) for n, t in enumerate(teachers, 1))
    update = optimizer(registry.optimizers.build(direction, "optimizer"), 0.01, clip_norm=10.0)
    step = build_step(spec, with_memory(student), tuple(spoilt(t, poison) for t in teachers), update)
    batch = dict.fromkeys(step.streams, rows)
    return World(step, frozen, batch, jax.jit(step.init), jax.jit(step.update, donate_argnums=0))


@functools.cache
def first_values(model: Model, number: int, inputs: str) -> Variables:
    return Variables(*jax.jit(model.init)(jax.random.key(number), ROWS[inputs]))


def with_memory(model: Model) -> Model:
    """Return the model with more state: a count of training calls, and decaying sums of its logits and random draws."""

    def init(key, batch):
        params, state = model.init(key, batch)
        return params, state | {"draw": jnp.zeros(()), "logits": jnp.zeros(()), "calls": jnp.zeros((), jnp.int32)}

    def apply(params, state, batch, *, train, key):
        out, new = model.apply(params, state, batch, train=train, key=key)
        logits = state["logits"] / 2 + jnp.abs(out.dense().logits).mean()
        draw = state["draw"] / 2 + jax.random.uniform(key)
        return out, new | {"draw": draw, "logits": logits, "calls": state["calls"] + train}

    return Model(init, apply)


def spoilt(model: Model, always: bool) -> Model:
    """Return a model whose outputs are NaN in rows where the mask is -0.0 or, with `always`, in all masked rows.

    With -0.0 in place of 0.0 in the mask, the same compiled program serves both cases.
    """

    def apply(params, state, batch, *, train, key):
        out, state = model.apply(params, state, batch, train=train, key=key)
        fine = batch["mask"] > 0 if always else ~jnp.signbit(batch["mask"])

        def spoil(x):
            # an output that is pooled over a text has one flag for all tokens
            there = fine if x.shape[: fine.ndim] == fine.shape else fine.reshape(len(x), -1).any(1)
            return jnp.where(there.reshape(there.shape + (1,) * (x.ndim - there.ndim)), x, jnp.nan)

        return jax.tree.map(spoil, out.dense()), state

    return Model(model.init, apply)


def run(world: World, updates: int, state=None, metric: str = "loss"):
    """Run some updates from `state` (default: the first), and return the last train state and a metric of each."""
    state, losses = state or world.init(KEY, world.frozen, world.batch), []
    for _ in range(updates):
        state, metrics = world.update(state, world.frozen, world.batch)
        losses.append(float(metrics[metric].compute()))
    return state, losses


def raw(tree: Any) -> dict[str, np.ndarray]:
    """Return the arrays of a tree on the host, by name, as a checkpoint holds them."""
    return jax.device_get(flatten(tree))


def buffers(tree: Any) -> list[int]:
    return [x.unsafe_buffer_pointer() for x in flatten(tree).values()]


@every(STEPS)
def test_the_loss_falls_on_learnable_data(example):
    _, losses = run(world(example.spec), 40, metric=example.falls)
    assert losses[-1] < 0.8 * losses[0]  # mgda goes to 0.75: it finds no direction in which all terms fall
    assert np.isfinite(losses).all()


@every(STEPS)
def test_a_step_reports_every_term_its_loss_and_the_norm_of_its_gradient(example):
    w = world(example.spec)
    _, metrics = w.update(w.init(KEY, w.frozen, w.batch), w.frozen, w.batch)
    assert {"loss", "grad_norm", "terms/kd", "terms/cross_entropy", "terms/hidden", "terms/decay"} <= set(metrics)
    assert all_finite(metrics)
    mask, selection = w.batch["train"]["mask"], w.step.selection  # masked rows do not count
    most = selection.share * len(mask) if selection else np.inf
    assert metrics["terms/cross_entropy"].count == min(mask.sum(), most) > 0


@every(STEPS)
def test_the_train_state_is_donated_and_frozen_teachers_are_untouched(example):
    w = world(example.spec)
    before = raw(w.frozen)
    state = w.init(KEY, w.frozen, w.batch)
    run(w, 2, state)
    assert all(x.is_deleted() for x in jax.tree.leaves(state))
    assert_same(raw(w.frozen), before)


@every(STEPS)
def test_no_gradient_reaches_a_frozen_teacher(example):
    w = world(example.spec)
    state = w.init(KEY, w.frozen, w.batch)
    loss = lambda params: w.step.update(
        state, tuple(v._replace(params=p) for v, p in zip(w.frozen, params, strict=True)), w.batch
    )[1]["loss"].compute()
    gradient = jax.jit(jax.grad(loss))([values.params for values in w.frozen])
    assert not any(x.any() for x in jax.tree.leaves(gradient))


@every(STEPS)
def test_a_step_is_compiled_once_because_its_state_is_typed(example):
    w = world(example.spec)
    state, _ = run(w, 3)
    assert w.update._cache_size() == 1
    assert not any(x.weak_type for x in flatten(state).values())
    assert not any(x.weak_type for x in flatten(w.init(KEY, w.frozen, w.batch)).values())


@every(STEPS)
def test_no_array_is_in_the_state_twice_for_it_could_not_be_donated_twice(example):
    w = world(example.spec)
    state = w.init(KEY, w.frozen, w.batch)
    owned = buffers(state)
    assert len(set(owned)) == len(owned)
    assert not set(owned) & set(buffers((w.frozen, w.batch)))


@every(STEPS)
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(example):
    w = world(example.spec)
    whole, _ = run(w, 4)
    half, _ = run(w, 2)
    saved = {name: x.copy() for name, x in raw(half).items()}
    resumed, _ = run(w, 2, unflatten(half, jax.device_put(saved)))
    assert_same(raw(resumed), raw(whole))
    assert whole.step == 4


@pytest.mark.sampled("[!o]*", "offline")  # on_policy makes its own rows, which needs a second compiled step
@every(STEPS)
def test_a_teachers_nan_in_a_row_that_does_not_count_changes_nothing(example):
    w = world(example.spec)
    clean, losses = run(w, 2)
    nan = {name: rows | {"mask": jnp.where(rows["mask"] > 0, rows["mask"], -0.0)} for name, rows in w.batch.items()}
    makes_rows = example.stream not in w.batch  # the step also makes their masks
    reached, same = run(world(example.spec, poison=True) if makes_rows else w._replace(batch=nan), 2)
    assert all_finite(flatten(reached))
    assert_same(raw(reached), raw(clean))
    assert same == losses


@every(STEPS)
def test_every_update_draws_anew_and_keeps_the_students_state(example):
    w = world(example.spec)
    start = w.init(KEY, w.frozen, w.batch)
    states = [jax.device_get(start.state["student"])]
    for _ in range(3):
        start, _ = run(w, 1, start)
        states.append(jax.device_get(start.state["student"]))
    for name in states[0]:
        assert len({state[name].tobytes() for state in states}) == 4, name
    assert [int(state["calls"]) for state in states] == [0, 1, 2, 3]  # `aware(start=...)` relies on this count
    draws = [state["draw"] - before["draw"] / 2 for before, state in itertools.pairwise(states)]
    assert np.abs(np.diff(draws)).min() > 1e-3 and draws[0] != draws[2]
    again, _ = run(w, 3)
    assert_same(jax.device_get(again.state["student"]), states[-1])


# Optimisers


@every(OPTIMIZERS)
def test_an_optimiser_descends_and_its_state_is_typed_and_distinct(example):
    update = optimizer(registry.optimizers.build(example.spec, "optimizer"), 0.02)
    params = {"student": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    loss = lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p))

    @jax.jit
    def one(params, state):
        updates, state = update.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(update.init)(params)
    assert len(set(buffers(state))) == len(jax.tree.leaves(state))
    start = loss(params)
    for _ in range(10):
        params, state = one(params, state)
    assert loss(params) < 0.9 * start
    assert one._cache_size() == 1 and not any(x.weak_type for x in jax.tree.leaves(state))


def step_of(update: optax.GradientTransformation, params: Any, gradient: Any) -> Any:
    return update.update(gradient, update.init(params), params)[0]


def test_plain_descent_moves_by_the_rate_times_the_gradient():
    sgd = registry.optimizers.build("sgd(momentum=0.0)", "optimizer")
    gradient = {"student": jnp.array([3.0, 4.0])}
    params = {"student": jnp.zeros(2)}
    assert_close(step_of(optimizer(sgd, 0.1), params, gradient), {"student": jnp.array([-0.3, -0.4])})
    # a norm of 5 is clipped to 1
    assert_close(step_of(optimizer(sgd, 0.1, clip_norm=1.0), params, gradient), {"student": jnp.array([-0.06, -0.08])})


def test_weights_decay_but_biases_do_not():
    # the scales of 3 layers are stacked in a matrix, and must not decay as one
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "blocks/norm/scale": jnp.ones((3, 2))}
    still = jax.tree.map(jnp.zeros_like, params)
    for name in registry.optimizers:
        spec = f"{name}(weight_decay=0.5)"
        moved = step_of(optimizer(registry.optimizers.build(spec, "optimizer"), 0.1), params, still)
        assert_close(moved, still | {"kernel": jnp.full((2, 2), -0.05)})


def test_each_role_is_clipped_for_itself():
    """Check that a large gradient of a gate does not make the student's update smaller."""
    sgd = registry.optimizers.build("sgd(momentum=0.0)", "optimizer")
    params = {"student": {"a": jnp.zeros(2)}, "fusion": {"gate": jnp.zeros(1)}}
    gradient = {"student": {"a": jnp.array([3.0, -4.0])}, "fusion": {"gate": jnp.array([100.0])}}
    moved = step_of(optimizer(sgd, 0.1, clip_norm=1.0), params, gradient)
    assert_close(moved, {"student": {"a": jnp.array([-0.06, 0.08])}, "fusion": {"gate": jnp.array([-0.1])}})
    short = {"student": {"a": jnp.array([0.3, -0.4])}, "fusion": gradient["fusion"]}
    assert_close(step_of(optimizer(sgd, 0.1, clip_norm=1.0), params, short)["student"]["a"], [-0.03, 0.04])


def test_a_role_has_its_own_optimiser_and_rate():
    sgd = registry.optimizers.build("sgd(momentum=0.0)", "optimizer")
    lion = registry.optimizers.build("lion", "optimizer")
    params = {"student": {"a": jnp.zeros(2)}, "fusion": {"gate": jnp.zeros(1)}, "terms": {}}
    gradient = {"student": {"a": jnp.array([3.0, -4.0])}, "fusion": {"gate": jnp.array([5.0])}, "terms": {}}
    moved = step_of(optimizer(sgd, 0.1, roles={"fusion": (lion, 0.25)}), params, gradient)
    assert_close(moved, {"student": {"a": jnp.array([-0.3, 0.4])}, "fusion": {"gate": jnp.array([-0.25])}, "terms": {}})
