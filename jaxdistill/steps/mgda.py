"""Multiple-gradient descent (MGDA): combine the terms' gradients so that every step lowers all terms.

Sener and Koltun, Multi-Task Learning as Multi-Objective Optimization, 2018 (arxiv.org/abs/1810.04650), algorithm 2;
Desideri, Multiple-gradient descent algorithm, 2012. A term k is one loss L_k of the config, with its weight w_k.

    for each batch:
        g_k      <- grad of w_k L_k in the student, for each term
        alpha    <- argmin || sum_k alpha_k g_k ||  over the simplex     # Frank-Wolfe, on the matrix of inner products
        theta_k  <- optimizer(grad of w_k L_k)                           # parameters of one term, such as its projector
        student  <- optimizer(sum_k alpha_k g_k)

The shortest vector of the gradients' convex hull has an inner product with each gradient that is at least its own
squared norm. So a small step along it lowers every term. If it is zero, no term can fall unless another rises (Pareto).

The min-norm point favours SHORT gradients: for two orthogonal ones, alpha_k is proportional to 1 / ||g_k||^2. A term of
small weight or scale gets the largest alpha, and a regulariser of weight 1e-4 gets all of it. So list the real tasks in
`terms`, and give them similar weights. `normalize="norm"` computes alpha for gradients of length 1, an option of the
published code, and applies it to the gradients themselves. Then alpha does not depend on scale and weight, but a common
descent is no longer guaranteed. A term without a gradient, because its weight is 0 or all its examples are padding, is
left out. The guarantee holds for plain gradient descent; adaptive optimisers such as adamw change the direction.

It takes one backward pass for each term, and keeps all gradients. Steps become short when the terms disagree.

Config: step = "mgda(terms=('kd', 'cross_entropy'))"
When: terms conflict, and none of them may get worse.
Checked: closed form for two gradients, a solver for more; all terms fall in a case where one rises under their sum.
"""

from typing import Literal

import jax.numpy as jnp
import optax

from jaxdistill.core.interfaces import Model, Objective, Step
from jaxdistill.core.registry import steps
from jaxdistill.core.sums import Mean
from jaxdistill.core.types import Batch, TrainState, Variables
from jaxdistill.fusion.min_norm import min_norm_weights
from jaxdistill.steps.learner import combine, learner, select_terms
from jaxdistill.steps.observe import step_metrics


@steps.register
def mgda(
    student: Model,
    teachers: tuple[Model, ...],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    normalize: Literal["none", "norm"] = "none",
    terms: tuple[str, ...] = (),
) -> Step:
    """Build the MGDA training step: descend along the shortest convex combination of the gradients of the losses.

    This is sum_k alpha_k g_k, with alpha_k >= 0 and sum_k alpha_k = 1. g_k is the gradient of loss k, times its weight
    in the config, with respect to the student.

    Args:
        student, teachers, objective, optimizer: the models, the losses with their weights, and the optimiser, built
            from the other keys of the config.
        normalize: "norm" chooses alpha for the gradients g_k / ||g_k||; "none" chooses alpha for the gradients g_k.
        terms: names of the losses to combine; () means all losses. Gradients of losses that are not named are added
            with alpha 1.

    Raises:
        ValueError: the config has no loss of such a name.
    """
    parts, names = learner(student, teachers, objective, optimizer), select_terms(objective, terms)

    def update(ts: TrainState, frozen: tuple[Variables, ...], batch: Batch) -> tuple[TrainState, dict[str, Mean]]:
        back, means, state = parts.backward(ts, frozen, batch)
        config_weights = objective.weights(ts.step)
        gradients = {name: back({name: weight}) for name, weight in config_weights.items()}
        shared = [gradients[name]["student"] for name in names]
        products = jnp.stack([jnp.stack([optax.tree.vdot(a, b) for a in shared]) for b in shared])
        if normalize == "norm":
            length = jnp.sqrt(jnp.diagonal(products))
            products = products / jnp.maximum(jnp.outer(length, length), jnp.finfo(length.dtype).tiny)
        ones = dict.fromkeys(config_weights, jnp.ones(()))
        alpha = ones | dict(zip(names, min_norm_weights(products), strict=True))
        gradient = combine(gradients, alpha) | {"terms": combine(gradients, ones)["terms"]}
        weights = {name: config_weights[name] * alpha[name] for name in config_weights}
        metrics = step_metrics(means, objective.total(means, ts.step), gradient, weights)
        return parts.descend(ts, gradient, state), metrics

    return Step(parts.init, update, objective.streams)
