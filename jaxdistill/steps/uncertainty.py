"""Uncertainty weighting: weight each term by a learned variance (homoscedastic uncertainty).

Kendall, Gal and Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics, 2018
(arxiv.org/abs/1705.07115). A term k is one loss L_k of the config, with its weight w_k.

    minimise  sum_k w_k ( L_k / (2 sigma_k^2) + log sigma_k )        over the student and s_k = log sigma_k^2

    for each batch:
        student  <- optimizer(grad sum_k w_k exp(-s_k) / 2 * L_k)
        s_k      <- optimizer(w_k (1 - exp(-s_k) L_k) / 2)               # converged where sigma_k^2 = L_k

w_k, the config's weights, are outside the brackets, so that a term's weight converges to w_k / (2 L_k). As factors of
L_k they would cancel. So they are priorities: a term of weight 0 (a schedule may set it to 0 for some steps) neither
trains the student nor changes its s_k. The paper has 1 / sigma^2 for classification and 1 / (2 sigma^2) for regression;
here all terms have the latter, so that s differs by log 2.

Traps: a term that can reach 0, such as kd, gets a weight that grows without bound; a low learning rate of the variances
(`roles.weights.rate`) slows this down. A term that can be negative never converges. A regulariser is no task: list the
real tasks in `terms`.

Config: step = "uncertainty(terms=('kd', 'cross_entropy'))", and roles.weights.rate for the variances' optimiser
When: terms differ in scale, and there is no time to search for weights.
Checked: against values computed by hand; it converges to sigma^2 = L.
"""

import jax.numpy as jnp
import optax

from jaxdistill.core.interfaces import Model, Objective, Step
from jaxdistill.core.registry import steps
from jaxdistill.core.sums import Mean
from jaxdistill.core.types import NO_VARIABLES, Batch, Key, TrainState, Variables
from jaxdistill.steps.learner import learner, select_terms
from jaxdistill.steps.observe import step_metrics


@steps.register
def uncertainty(
    student: Model,
    teachers: tuple[Model, ...],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    terms: tuple[str, ...] = (),
) -> Step:
    """Build the training step that learns a variance exp(s_k) for each loss L_k (uncertainty weighting).

    It minimises sum_k w_k (exp(-s_k) L_k + s_k) / 2 over the student and the s_k, with the weights w_k of the config.
    The s_k start at 0 and are stored as `TrainState.params["weights"]`. The teachers are frozen.

    Args:
        student, teachers, objective, optimizer: the models, the losses with their weights, and the optimiser, built
            from the other keys of the config.
        terms: names of the losses with a variance; () means all losses. Losses that are not named have only the weights
            of the config.

    Raises:
        ValueError: the config has no loss of such a name.
    """
    parts, names = learner(student, teachers, objective, optimizer), select_terms(objective, terms)

    def init(key: Key, frozen: tuple[Variables, ...], batch: Batch, start: Variables = NO_VARIABLES) -> TrainState:
        return parts.init(key, frozen, batch, start, Variables({"weights": jnp.zeros(len(names))}, {}))

    def update(ts: TrainState, frozen: tuple[Variables, ...], batch: Batch) -> tuple[TrainState, dict[str, Mean]]:
        config_weights = objective.weights(ts.step)
        w = jnp.stack([config_weights[name] for name in names])
        precision = jnp.exp(-ts.params["weights"])  # 1 / sigma^2
        weights = config_weights | dict(zip(names, w * precision / 2, strict=True))
        gradient, means, state = parts.gradient(ts, frozen, batch, weights)
        losses = jnp.stack([means[name].compute() for name in names])
        slope = w * (1 - precision * losses) / 2
        metrics = step_metrics(means, objective.total(means, ts.step), gradient, weights)
        return parts.descend(ts, gradient | {"weights": slope}, state), metrics

    return Step(init, update, objective.streams)
