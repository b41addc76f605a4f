"""Offline distillation: frozen teachers, one student (Hinton et al., 2015, arxiv.org/abs/1503.02531).

    for each batch:
        signals   <- student(batch), sg(teacher_k(batch)) for each k        # sg: stop_gradient
        loss      <- sum over terms of weight(step) * mean(term(signals))
        params    <- optimizer(grad loss)           # student, gates and projectors, each role with its own optimiser

A term is one loss of the config, with its weight. A role is a group of params: the student, the gates of the fusion, or
the projectors of the terms.

Config: step = "offline()"
When: by default; it is the cheapest step. Others learn the weights of the terms or the choice of teachers.
Checked: common tests of all steps: frozen teachers, jit and pmap, 1 and 8 devices, exact resume.
"""

import optax

from jaxdistill.core.interfaces import Model, Objective, Step
from jaxdistill.core.registry import steps
from jaxdistill.core.sums import Mean
from jaxdistill.core.types import Batch, TrainState, Variables
from jaxdistill.steps.learner import learner
from jaxdistill.steps.observe import step_metrics


@steps.register
def offline(
    student: Model, teachers: tuple[Model, ...], objective: Objective, optimizer: optax.GradientTransformation
) -> Step:
    """Build the plain training step: minimise the weighted sum of the config's losses, with frozen teachers.

    Without teachers, this is supervised training.

    Args:
        student, teachers, objective, optimizer: the models, the losses with their weights, and the optimiser, built
            from the other keys of the config.
    """
    parts = learner(student, teachers, objective, optimizer)

    def update(ts: TrainState, frozen: tuple[Variables, ...], batch: Batch) -> tuple[TrainState, dict[str, Mean]]:
        gradient, means, state = parts.gradient(ts, frozen, batch, objective.weights(ts.step))
        return parts.descend(ts, gradient, state), step_metrics(means, objective.total(means, ts.step), gradient)

    return Step(parts.init, update, objective.streams)
