"""Offline distillation: frozen teachers, one student (Hinton et al., 2015, arxiv.org/abs/1503.02531).

for each batch:
    signals   <- student(batch), sg(teacher_k(batch)) for each k
    loss      <- sum over terms of weight(step) * mean(term(signals))
    params    <- optimizer(grad loss)           # student, gates and projectors, each role with its own optimiser
"""

import optax

from jaxdistill.registry import steps
from jaxdistill.steps.learner import learner
from jaxdistill.steps.observe import report
from jaxdistill.types import Model, Objective, Step


@steps.register
def offline(
    student: Model, teachers: tuple[Model, ...], objective: Objective, optimizer: optax.GradientTransformation
) -> Step:
    """The student learns from frozen teachers; without teachers it is plain supervised training."""
    parts = learner(student, teachers, objective, optimizer)

    def update(ts, frozen, batch):
        gradient, means, state = parts.gradient(ts, frozen, batch, objective.weights(ts.step))
        return parts.descend(ts, gradient, state), report(means, objective.total(means, ts.step), gradient)

    return Step(parts.init, update, objective.streams)
