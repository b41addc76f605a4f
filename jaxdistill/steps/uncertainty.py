"""Weights by homoscedastic uncertainty: each term has a variance that is learned beside the student.

Kendall, Gal and Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics, 2018
(arxiv.org/abs/1705.07115).

    minimise  sum_k w_k ( L_k / (2 sigma_k^2) + log sigma_k )        over the student and s_k = log sigma_k^2

for each batch:
    student  <- optimizer(grad sum_k w_k exp(-s_k) / 2 * L_k)
    s_k      <- optimizer(w_k (1 - exp(-s_k) L_k) / 2)               # at rest where sigma_k^2 = L_k

w_k, the config's weights, stand outside: inside they would cancel, for at rest a term weighs w_k / (2 L_k). So they
are priorities, and a term of weight 0, as in phases, neither teaches nor moves its s_k. The paper's classification
likelihood has 1 / sigma^2 where regression has 1 / (2 sigma^2); here all terms have the latter, and s is another by
log 2.

Traps: a term that can reach 0, such as kd, gets a weight that grows without end, ever slower if the role `weights` has
a low rate; one that can be negative has no rest at all. A regulariser is no task: name the `terms` that are.

Config: step = "uncertainty(terms=('kd', 'cross_entropy'))", and roles.weights.rate for the variances' own optimiser
When: terms of unlike size, and no time to search for weights.
Checked: by hand; its rest is sigma^2 = L.
"""

import jax.numpy as jnp
import optax

from jaxdistill.core.registry import steps
from jaxdistill.core.types import NO_VARIABLES, Model, Objective, Step, Variables
from jaxdistill.steps.learner import learner, weighed
from jaxdistill.steps.observe import report


@steps.register
def uncertainty(
    student: Model,
    teachers: tuple[Model, ...],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    terms: tuple[str, ...] = (),
) -> Step:
    """The student learns from frozen teachers, each term weighed by its learned uncertainty.

    The log-variances s_k are the role `weights`; they begin at 0.

    Args:
        student, teachers, objective, optimizer: given by the config.
        terms: the terms that are weighed, by name; empty: all. The others keep their weights.

    Raises:
        ValueError: the objective has no such term.
    """
    parts, names = learner(student, teachers, objective, optimizer), weighed(objective, terms)

    def init(key, frozen, batch, start=NO_VARIABLES):
        return parts.init(key, frozen, batch, start, Variables({"weights": jnp.zeros(len(names))}, {}))

    def update(ts, frozen, batch):
        given = objective.weights(ts.step)
        w, precision = jnp.stack([given[name] for name in names]), jnp.exp(-ts.params["weights"])  # 1 / sigma^2
        weights = given | dict(zip(names, w * precision / 2, strict=True))
        gradient, means, state = parts.gradient(ts, frozen, batch, weights)
        losses = jnp.stack([means[name].compute() for name in names])
        slope = w * (1 - precision * losses) / 2
        metrics = report(means, objective.total(means, ts.step), gradient, weights)
        return parts.descend(ts, gradient | {"weights": slope}, state), metrics

    return Step(init, update, objective.streams)
