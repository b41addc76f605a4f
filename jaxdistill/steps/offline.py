"""Offline distillation: frozen teachers, one student (Hinton et al., 2015, arxiv.org/abs/1503.02531).

for each batch:
    signals   <- student(batch), sg(teacher_k(batch)) for each k
    loss      <- sum over terms of weight(step) * mean(term(signals))
    params    <- optimizer(grad loss)           # student, gates and projectors, each role with its own optimiser

Config: step = "offline()"
When: always, unless terms are to weigh themselves or teachers are to be chosen: no other step is as cheap.
Checked: by the laws of steps: frozen teachers, jit and pmap, 1 and 8 devices, resumed to the bit.
"""

import optax

from jaxdistill.core.registry import steps
from jaxdistill.core.types import Model, Objective, Step
from jaxdistill.steps.learner import learner
from jaxdistill.steps.observe import report


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
