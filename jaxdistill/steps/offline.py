"""Offline distillation: frozen teachers, one student (Hinton et al., 2015, arxiv.org/abs/1503.02531).

for each batch:
    signals   <- student(batch), sg(teacher_k(batch)) for each k
    loss      <- sum over terms of weight(step) * mean(term(signals))
    params    <- optimizer(grad loss)           # student, gates and projectors, each role with its own optimiser
"""

import jax
import jax.numpy as jnp
import optax

from jaxdistill.parallel.collectives import psum
from jaxdistill.registry import steps
from jaxdistill.steps.observe import begin, observe, report
from jaxdistill.types import NOTHING, Model, Objective, Step, TrainState


@steps.register
def offline(
    student: Model, teachers: tuple[Model, ...], objective: Objective, optimizer: optax.GradientTransformation
) -> Step:
    """The student learns from frozen teachers; without teachers it is plain supervised training."""

    def see(params, state, frozen, batch, step, key):
        return observe(student, teachers, params, state, frozen, batch, objective.streams, step=step, key=key)

    def init(key, frozen, batch, start=NOTHING):
        student_key, objective_key, run_key = jax.random.split(key, 3)
        student_params, student_state = begin(student, student_key, batch["train"], start)
        params, state = {"student": student_params}, {"student": student_state}
        step = jnp.zeros((), jnp.int32)
        signals, _ = see(params, state, frozen, batch, step, run_key)
        objective_params, objective_state = objective.init(objective_key, signals)
        params, state = {**params, **objective_params}, {**state, **objective_state}
        return TrainState(step, params, state, optimizer.init(params), run_key)

    def update(ts, frozen, batch):
        models_key, terms_key = jax.random.split(jax.random.fold_in(ts.key, ts.step))

        def loss(params):
            signals, student_state = see(params, ts.state, frozen, batch, ts.step, models_key)
            value, (means, objective_state) = objective.loss(params, ts.state, signals, key=terms_key)
            return value, (means, {"student": student_state, **objective_state})

        (value, (means, state)), gradients = jax.value_and_grad(loss, has_aux=True)(ts.params)
        gradients = psum(gradients)
        updates, opt_state = optimizer.update(gradients, ts.opt_state, ts.params)
        params = optax.apply_updates(ts.params, updates)
        return TrainState(ts.step + 1, params, state, opt_state, ts.key), report(means, value, gradients)

    return Step(init, update, objective.streams)
