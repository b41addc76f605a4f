"""Building blocks of training steps with one student: initialise, run the models, differentiate and update.

A step that is built from them only defines how the loss terms are weighted.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from jaxdistill.core.collectives import psum
from jaxdistill.core.interfaces import Model, Objective
from jaxdistill.core.objective import weighted_sum
from jaxdistill.core.sums import Mean
from jaxdistill.core.types import (
    NO_VARIABLES,
    Array,
    Batch,
    ByRole,
    Key,
    PyTree,
    Signals,
    State,
    TrainState,
    Variables,
)
from jaxdistill.models.abstract import init_variables
from jaxdistill.steps.observe import RunModels, observe

Means = Mapping[str, Mean]  # by term, of the global batch
MeansAndState = tuple[Means, dict[str, PyTree]]  # by term, and by role
Back = Callable[[Mapping[str, Array | float]], PyTree]  # {term: weight} -> gradient of the weighted sum of the terms


@runtime_checkable
class LearnerInit(Protocol):
    """The type of `Learner.init`: a function that creates the train state before the first training step."""

    def __call__(
        self,
        key: Key,
        frozen: tuple[Variables, ...],
        batch: Batch,
        start: Variables = NO_VARIABLES,
        extra: Variables = NO_VARIABLES,
        /,
    ) -> TrainState:
        """Create the train state; `start` replaces random arrays of the student, and `extra` adds params and state."""


class Learner(NamedTuple):
    """The functions from which a training step with one student is built: initialise, differentiate and update.

    In the signatures, `frozen` are the teachers' variables, `means` is the mean of each loss term over the global
    batch, and `state` is `TrainState.state` after the step. Gradients are with respect to `TrainState.params`, a dict
    with keys such as `student` and `fusion`.

    init: `(key, frozen, batch, start, extra) -> TrainState`; arrays in `start` replace the student's random arrays of
        the same names, and `extra` has further entries of params and state
    gradient: `(train_state, frozen, batch, {term: weight}) -> (gradient, means, state)`; the gradient is that of the
        weighted sum of the terms
    backward: `(train_state, frozen, batch) -> (back, means, state)`; runs the models once. Each call of
        `back({term: weight})` then returns the gradient of one weighted sum of the terms
    descend: `(train_state, gradient, state) -> TrainState`; one update by the optimiser. Entries that `state` lacks
        keep their old values
    """

    init: LearnerInit
    gradient: Callable[
        [TrainState, tuple[Variables, ...], Batch, Mapping[str, Array]], tuple[PyTree, Means, dict[str, PyTree]]
    ]
    backward: Callable[[TrainState, tuple[Variables, ...], Batch], tuple[Back, Means, dict[str, PyTree]]]
    descend: Callable[[TrainState, PyTree, dict[str, PyTree]], TrainState]


def learner(
    student: Model,
    teachers: tuple[Model, ...],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    run_models: RunModels = observe,
) -> Learner:
    """Build the functions of a training step (see `Learner`) for a student, its teachers and an objective.

    The gradients and means that these functions return are summed over all devices.

    Args:
        student: the model to train.
        teachers: models whose outputs the loss terms may read.
        objective: the loss terms, their weights, and the fusion of the teachers.
        optimizer: optimiser of all params of the train state.
        run_models: function that runs the models on a batch, with the arguments and results of `observe`.
    """
    transformation = optax.with_extra_args_support(optimizer)

    def run(
        params: ByRole, state: ByRole, frozen: tuple[Variables, ...], batch: Batch, step: Array, key: Key
    ) -> tuple[dict[str, Signals], State]:
        return run_models(student, teachers, params, state, frozen, batch, objective.streams, step=step, key=key)

    def init(
        key: Key,
        frozen: tuple[Variables, ...],
        batch: Batch,
        start: Variables = NO_VARIABLES,
        extra: Variables = NO_VARIABLES,
    ) -> TrainState:
        student_key, objective_key, run_key = jax.random.split(key, 3)
        student_params, student_state = init_variables(student, student_key, batch["train"], start)
        params, state = {"student": student_params}, {"student": student_state}
        step = jnp.zeros((), jnp.int32)
        signals, _ = run(params, state, frozen, batch, step, run_key)
        objective_params, objective_state = objective.init(objective_key, signals)
        params = {**params, **objective_params, **extra.params}
        return TrainState(step, params, {**state, **objective_state, **extra.state}, optimizer.init(params), run_key)

    def forward(
        params: ByRole, ts: TrainState, frozen: tuple[Variables, ...], batch: Batch
    ) -> tuple[dict[str, Signals], State, Key]:
        models_key, terms_key = jax.random.split(jax.random.fold_in(ts.key, ts.step))
        return *run(params, ts.state, frozen, batch, ts.step, models_key), terms_key

    def gradient(
        ts: TrainState, frozen: tuple[Variables, ...], batch: Batch, weights: Mapping[str, Array]
    ) -> tuple[PyTree, Means, dict[str, PyTree]]:
        def loss(params: ByRole) -> tuple[Float[Array, ""], MeansAndState]:
            signals, student_state, key = forward(params, ts, frozen, batch)
            value, (means, state) = objective.loss(params, ts.state, signals, weights, key=key)
            return value, (means, {"student": student_state, **state})

        grads, (means, state) = jax.grad(loss, has_aux=True)(ts.params)
        return psum(grads), _sum_over_devices(means), state

    def backward(ts: TrainState, frozen: tuple[Variables, ...], batch: Batch) -> tuple[Back, Means, dict[str, PyTree]]:
        def terms_of(params: ByRole) -> tuple[dict[str, Array], MeansAndState]:
            signals, student_state, key = forward(params, ts, frozen, batch)
            means, state = objective.apply(params, ts.state, signals, key=key)
            values = {name: weighted_sum({name: mean}, {name: jnp.ones(())}) for name, mean in means.items()}
            return values, (means, {"student": student_state, **state})

        values, vjp, (means, state) = jax.vjp(terms_of, ts.params, has_aux=True)

        def back(weights: Mapping[str, Array | float]) -> PyTree:
            cotangents = {name: jnp.asarray(weights.get(name, 0.0), x.dtype) for name, x in values.items()}
            return psum(vjp(cotangents)[0])

        return back, _sum_over_devices(means), state

    def descend(ts: TrainState, grads: PyTree, state: dict[str, PyTree]) -> TrainState:
        whole_state = {**ts.state, **state}
        updates, opt_state = transformation.update(grads, ts.opt_state, ts.params, model_state=whole_state)
        params = optax.apply_updates(ts.params, updates)
        return TrainState(ts.step + 1, params, whole_state, opt_state, ts.key)

    return Learner(init, gradient, backward, descend)


def _sum_over_devices(means: Means) -> Means:
    return {name: Mean(psum(mean.sum), mean.count) for name, mean in means.items()}


def combine(trees: Mapping[str, PyTree], weights: Mapping[str, Array]) -> PyTree:
    """Compute sum_k weights[k] trees[k] over pytrees of equal structure, such as the gradients of the loss terms.

    Args:
        trees: a pytree for each term, by the term's name.
        weights: a scalar for each term, by the term's name.
    """
    scaled = [jax.tree.map(lambda x, w=weights[name]: w * x, tree) for name, tree in trees.items()]
    return jax.tree.map(lambda *each: sum(each[1:], each[0]), *scaled)


def select_terms(objective: Objective, terms: tuple[str, ...]) -> tuple[str, ...]:
    """Check the names of the loss terms that a training step weights, and return them in the order of the objective.

    Args:
        objective: the objective, which has the loss terms.
        terms: the names to select; () means all terms.

    Raises:
        ValueError: the objective has no term of such a name, or a name is given twice.
    """
    if unknown := sorted(set(terms) - set(objective.terms)):
        raise ValueError(f"the objective has no term {unknown[0]!r}; it has {', '.join(objective.terms)}")
    if len(set(terms)) < len(terms):
        raise ValueError(f"terms={terms} names a term twice")
    return tuple(name for name in objective.terms if name in terms or not terms)
