"""Multiple gradient descent: in every step the weights under which all terms fall.

Sener and Koltun, Multi-Task Learning as Multi-Objective Optimization, 2018 (arxiv.org/abs/1810.04650), algorithm 2;
Desideri, Multiple-gradient descent algorithm, 2012.

for each batch:
    g_k      <- grad of w_k L_k in the student, for each term
    alpha    <- argmin || sum_k alpha_k g_k ||  over the simplex     # Frank-Wolfe, on the matrix of inner products
    theta_k  <- optimizer(grad of w_k L_k)                           # what belongs to one term, such as its projector
    student  <- optimizer(sum_k alpha_k g_k)

The shortest vector of the gradients' convex hull has a product with each of them that is at least its own square: a
small step along it makes every term fall, and where it is zero none can fall without another rising (Pareto).

The min-norm point favours SHORT gradients: of two at right angles, alpha_k is as 1 / ||g_k||^2. A term of small weight
or scale is so given the most, a regulariser of weight 1e-4 all: name the `terms` that are tasks, and give them weights
alike. `normalize="norm"` finds alpha for gradients of length 1, as an option of the published code does, and applies
it to the gradients as they are: then scale and weight do not matter to alpha, but a common descent is no longer
promised. A term without any gradient, whose weight is 0 or whose rows are all padding, has no say. Adaptive optimisers
such as adamw bend the direction; the promise is that of plain descent.

One backward pass for each term, of which all gradients are kept. Steps grow shorter as terms agree on nothing more.

Config: step = "mgda(terms=('kd', 'cross_entropy'))"
When: terms in conflict, none of which may be sacrificed.
Checked: by closed form for two gradients, beside a solver for more; all terms fall where their sum lets one rise.
"""

from typing import Literal

import jax.numpy as jnp
import optax

from jaxdistill.core.registry import steps
from jaxdistill.core.types import Model, Objective, Step
from jaxdistill.fusion.min_norm import min_norm_weights
from jaxdistill.steps.learner import combine, learner, weighed
from jaxdistill.steps.observe import report


@steps.register
def mgda(
    student: Model,
    teachers: tuple[Model, ...],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    normalize: Literal["none", "norm"] = "none",
    terms: tuple[str, ...] = (),
) -> Step:
    """The student learns from frozen teachers along the shortest convex combination of its terms' gradients.

    Args:
        student, teachers, objective, optimizer: given by the config.
        normalize: "none", or "norm" to find the combination of gradients of length 1.
        terms: the terms that are combined, by name; empty: all. The others are added with their weights.

    Raises:
        ValueError: the objective has no such term.
    """
    parts, names = learner(student, teachers, objective, optimizer), weighed(objective, terms)

    def update(ts, frozen, batch):
        back, means, state = parts.backward(ts, frozen, batch)
        given = objective.weights(ts.step)
        slopes = {name: back({name: weight}) for name, weight in given.items()}
        shared = [slopes[name]["student"] for name in names]
        products = jnp.stack([jnp.stack([optax.tree.vdot(a, b) for a in shared]) for b in shared])
        if normalize == "norm":
            length = jnp.sqrt(jnp.diagonal(products))
            products = products / jnp.maximum(jnp.outer(length, length), jnp.finfo(length.dtype).tiny)
        ones = dict.fromkeys(given, jnp.ones(()))
        alpha = ones | dict(zip(names, min_norm_weights(products), strict=True))
        gradient = combine(slopes, alpha) | {"terms": combine(slopes, ones)["terms"]}
        weights = {name: given[name] * alpha[name] for name in given}
        metrics = report(means, objective.total(means, ts.step), gradient, weights)
        return parts.descend(ts, gradient, state), metrics

    return Step(parts.init, update, objective.streams)
