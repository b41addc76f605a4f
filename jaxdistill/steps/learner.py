"""What the steps with one student and frozen teachers share: how they begin, look, differentiate and descend.

A step of these says how it weighs the terms, and nothing else.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdistill.core.collectives import psum
from jaxdistill.core.objective import weighted
from jaxdistill.core.sums import Mean
from jaxdistill.core.types import NO_VARIABLES, Array, Model, Objective, PyTree, TrainState
from jaxdistill.models.abstract import begin
from jaxdistill.steps.observe import observe

Means = Mapping[str, Mean]  # by term, of the global batch


class Learner(NamedTuple):
    """A student with its frozen teachers and its objective. What is differentiated are all params of the train state.

    init: `(key, frozen, batch, start, more) -> TrainState`; `more` are params and state of further roles
    gradient: `(train_state, frozen, batch, {term: weight}) -> (gradient, means, state)` of the weighted sum of terms
    backward: `(train_state, frozen, batch) -> (back, means, state)`, one forward pass; `back({term: weight})` is the
        gradient of a weighted sum of terms, as often as wanted
    descend: `(train_state, gradient, state) -> TrainState`, one step further; roles that `state` lacks stay as they are
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
    look: Callable[..., Any] = observe,
) -> Learner:
    """The parts of a step, put together. Gradients and means are summed over devices.

    Args:
        student, teachers, objective, optimizer: as the step has them.
        look: how the models are run on the batch.
    """

    def see(params, state, frozen, batch, step, key):
        return look(student, teachers, params, state, frozen, batch, objective.streams, step=step, key=key)

    def init(key, frozen, batch, start=NO_VARIABLES, more=NO_VARIABLES):
        student_key, objective_key, run_key = jax.random.split(key, 3)
        student_params, student_state = begin(student, student_key, batch["train"], start)
        params, state = {"student": student_params}, {"student": student_state}
        step = jnp.zeros((), jnp.int32)
        signals, _ = see(params, state, frozen, batch, step, run_key)
        objective_params, objective_state = objective.init(objective_key, signals)
        params = {**params, **objective_params, **more.params}
        return TrainState(step, params, {**state, **objective_state, **more.state}, optimizer.init(params), run_key)

    def looked(params, ts, frozen, batch):
        models_key, terms_key = jax.random.split(jax.random.fold_in(ts.key, ts.step))
        return *see(params, ts.state, frozen, batch, ts.step, models_key), terms_key

    def gradient(ts, frozen, batch, weights):
        def loss(params):
            signals, student_state, key = looked(params, ts, frozen, batch)
            value, (means, state) = objective.loss(params, ts.state, signals, weights, key=key)
            return value, (means, {"student": student_state, **state})

        found, (means, state) = jax.grad(loss, has_aux=True)(ts.params)
        return psum(found), _of_all_devices(means), state

    def backward(ts, frozen, batch):
        def each(params):
            signals, student_state, key = looked(params, ts, frozen, batch)
            means, state = objective.apply(params, ts.state, signals, key=key)
            values = {name: weighted({name: mean}, {name: jnp.ones(())}) for name, mean in means.items()}
            return values, (means, {"student": student_state, **state})

        values, pull, (means, state) = jax.vjp(each, ts.params, has_aux=True)

        def back(weights: Mapping[str, Any]) -> PyTree:
            given = {name: jnp.asarray(weights.get(name, 0.0), x.dtype) for name, x in values.items()}
            return psum(pull(given)[0])

        return back, _of_all_devices(means), state

    def descend(ts, found, state):
        updates, opt_state = optimizer.update(found, ts.opt_state, ts.params)
        params = optax.apply_updates(ts.params, updates)
        return TrainState(ts.step + 1, params, {**ts.state, **state}, opt_state, ts.key)

    return Learner(init, gradient, backward, descend)


def _of_all_devices(means: Means) -> Means:
    return {name: Mean(psum(mean.sum), mean.count) for name, mean in means.items()}


def combine(trees: Mapping[str, PyTree], weights: Mapping[str, Array]) -> PyTree:
    """`sum over terms of weight * tree`."""
    scaled = [jax.tree.map(lambda x, w=weights[name]: w * x, tree) for name, tree in trees.items()]
    return jax.tree.map(lambda *each: sum(each[1:], each[0]), *scaled)


def weighed(objective: Objective, terms: tuple[str, ...]) -> tuple[str, ...]:
    """The terms that a step weighs, in the objective's order: those that are named, or all of them.

    Raises:
        ValueError: the objective has no such term.
    """
    if unknown := sorted(set(terms) - set(objective.terms)):
        raise ValueError(f"the objective has no term {unknown[0]!r}; it has {', '.join(objective.terms)}")
    return tuple(name for name in objective.terms if name in terms or not terms)
