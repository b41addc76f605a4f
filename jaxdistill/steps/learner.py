"""Building blocks of the steps with one student: initialise, run the models, differentiate and update.

A step that uses them only says how it weights the terms.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdistill.core.collectives import psum
from jaxdistill.core.interfaces import Model, Objective
from jaxdistill.core.objective import weighted_sum
from jaxdistill.core.sums import Mean
from jaxdistill.core.types import NO_VARIABLES, Array, PyTree, TrainState
from jaxdistill.models.abstract import init_variables
from jaxdistill.steps.observe import observe

Means = Mapping[str, Mean]  # by term, of the global batch


class Learner(NamedTuple):
    """A student with its teachers and objective. Gradients are with respect to all params of the train state.

    init: `(key, frozen, batch, start, extra) -> TrainState`; `extra` has the params and state of further roles
    gradient: `(train_state, frozen, batch, {term: weight}) -> (gradient, means, state)` of the weighted sum of terms
    backward: `(train_state, frozen, batch) -> (back, means, state)`, one forward pass; each call of
        `back({term: weight})` returns the gradient of one weighted sum of terms
    descend: `(train_state, gradient, state) -> TrainState`, one update; roles that `state` lacks keep their state
    """

    init: Callable[..., TrainState]
    gradient: Callable[..., tuple[PyTree, Means, dict[str, PyTree]]]
    backward: Callable[..., tuple[Callable[[Mapping[str, Any]], PyTree], Means, dict[str, PyTree]]]
    descend: Callable[[TrainState, PyTree, dict[str, PyTree]], TrainState]


def learner(
    student: Model,
    teachers: tuple[Model, ...],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    run_models: Callable[..., Any] = observe,
) -> Learner:
    """Build the functions of a `Learner`. Their gradients and means are summed over devices.

    Args:
        student, teachers, objective, optimizer: the step's arguments.
        run_models: runs the models on a batch; see `observe`.
    """

    def run(params, state, frozen, batch, step, key):
        return run_models(student, teachers, params, state, frozen, batch, objective.streams, step=step, key=key)

    def init(key, frozen, batch, start=NO_VARIABLES, extra=NO_VARIABLES):
        student_key, objective_key, run_key = jax.random.split(key, 3)
        student_params, student_state = init_variables(student, student_key, batch["train"], start)
        params, state = {"student": student_params}, {"student": student_state}
        step = jnp.zeros((), jnp.int32)
        signals, _ = run(params, state, frozen, batch, step, run_key)
        objective_params, objective_state = objective.init(objective_key, signals)
        params = {**params, **objective_params, **extra.params}
        return TrainState(step, params, {**state, **objective_state, **extra.state}, optimizer.init(params), run_key)

    def forward(params, ts, frozen, batch):
        models_key, terms_key = jax.random.split(jax.random.fold_in(ts.key, ts.step))
        return *run(params, ts.state, frozen, batch, ts.step, models_key), terms_key

    def gradient(ts, frozen, batch, weights):
        def loss(params):
            signals, student_state, key = forward(params, ts, frozen, batch)
            value, (means, state) = objective.loss(params, ts.state, signals, weights, key=key)
            return value, (means, {"student": student_state, **state})

        grads, (means, state) = jax.grad(loss, has_aux=True)(ts.params)
        return psum(grads), _sum_over_devices(means), state

    def backward(ts, frozen, batch):
        def terms_of(params):
            signals, student_state, key = forward(params, ts, frozen, batch)
            means, state = objective.apply(params, ts.state, signals, key=key)
            values = {name: weighted_sum({name: mean}, {name: jnp.ones(())}) for name, mean in means.items()}
            return values, (means, {"student": student_state, **state})

        values, vjp, (means, state) = jax.vjp(terms_of, ts.params, has_aux=True)

        def back(weights: Mapping[str, Any]) -> PyTree:
            cotangents = {name: jnp.asarray(weights.get(name, 0.0), x.dtype) for name, x in values.items()}
            return psum(vjp(cotangents)[0])

        return back, _sum_over_devices(means), state

    def descend(ts, grads, state):
        updates, opt_state = optimizer.update(grads, ts.opt_state, ts.params)
        params = optax.apply_updates(ts.params, updates)
        return TrainState(ts.step + 1, params, {**ts.state, **state}, opt_state, ts.key)

    return Learner(init, gradient, backward, descend)


def _sum_over_devices(means: Means) -> Means:
    return {name: Mean(psum(mean.sum), mean.count) for name, mean in means.items()}


def combine(trees: Mapping[str, PyTree], weights: Mapping[str, Array]) -> PyTree:
    """Compute the sum over terms of `weight * tree`."""
    scaled = [jax.tree.map(lambda x, w=weights[name]: w * x, tree) for name, tree in trees.items()]
    return jax.tree.map(lambda *each: sum(each[1:], each[0]), *scaled)


def select_terms(objective: Objective, terms: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the terms that a step weights, in the objective's order: `terms`, or all if empty.

    Raises:
        ValueError: the objective has no such term.
    """
    if unknown := sorted(set(terms) - set(objective.terms)):
        raise ValueError(f"the objective has no term {unknown[0]!r}; it has {', '.join(objective.terms)}")
    return tuple(name for name in objective.terms if name in terms or not terms)
