"""Uncertainty weighting: weight each term by a learned variance (homoscedastic uncertainty).

Kendall, Gal and Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics, 2018
(arxiv.org/abs/1705.07115).

    minimise  sum_k w_k ( L_k / (2 sigma_k^2) + log sigma_k )        over the student and s_k = log sigma_k^2

    for each batch:
        student  <- optimizer(grad sum_k w_k exp(-s_k) / 2 * L_k)
        s_k      <- optimizer(w_k (1 - exp(-s_k) L_k) / 2)               # converged where sigma_k^2 = L_k

w_k, the config's weights, are outside the brackets, so that a term's weight converges to w_k / (2 L_k). As factors of
L_k they would cancel. So they are priorities: a term of weight 0, as in phases, neither trains the student nor changes
its s_k. The paper has 1 / sigma^2 for classification and 1 / (2 sigma^2) for regression; here all terms have the
latter, so that s differs by log 2.

Traps: a term that can reach 0, such as kd, gets a weight that grows without bound; a low rate of the role `weights`
slows this down. A term that can be negative never converges. A regulariser is no task: list the real tasks in `terms`.

Config: step = "uncertainty(terms=('kd', 'cross_entropy'))", and roles.weights.rate for the variances' optimiser
When: terms differ in scale, and there is no time to search for weights.
Checked: by hand; it converges to sigma^2 = L.
"""

import jax.numpy as jnp
import optax

from jaxdistill.core.interfaces import Model, Objective, Step
from jaxdistill.core.registry import steps
from jaxdistill.core.types import NO_VARIABLES, Variables
from jaxdistill.steps.learner import learner, select_terms
from jaxdistill.steps.observe import report


@steps.register
def uncertainty(
    student: Model,
    teachers: tuple[Model, ...],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    terms: tuple[str, ...] = (),
) -> Step:
    """Train the student with frozen teachers, each term weighted by its learned uncertainty.

    The log-variances s_k are the role `weights`; they start at 0.

    Args:
        student, teachers, objective, optimizer: set by the config.
        terms: names of the terms to weight; empty: all. The others keep their weights.

    Raises:
        ValueError: the objective has no such term.
    """
    parts, names = learner(student, teachers, objective, optimizer), select_terms(objective, terms)

    def init(key, frozen, batch, start=NO_VARIABLES):
        return parts.init(key, frozen, batch, start, Variables({"weights": jnp.zeros(len(names))}, {}))

    def update(ts, frozen, batch):
        config_weights = objective.weights(ts.step)
        w = jnp.stack([config_weights[name] for name in names])
        precision = jnp.exp(-ts.params["weights"])  # 1 / sigma^2
        weights = config_weights | dict(zip(names, w * precision / 2, strict=True))
        gradient, means, state = parts.gradient(ts, frozen, batch, weights)
        losses = jnp.stack([means[name].compute() for name in names])
        slope = w * (1 - precision * losses) / 2
        metrics = report(means, objective.total(means, ts.step), gradient, weights)
        return parts.descend(ts, gradient | {"weights": slope}, state), metrics

    return Step(init, update, objective.streams)
