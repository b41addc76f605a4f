"""GradNorm: weights that give all terms gradients of the size that their training rates deserve.

Chen, Badrinarayanan, Lee and Rabinovich, GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
Multitask Networks, 2018 (arxiv.org/abs/1711.02257), algorithm 1.

for each batch, with weights w_k that begin at 1:
    G_k      <- || grad_W w_k L_k ||                                 # W: those of the student's parameters that count
    r_k      <- (L_k / L_k(0)) / mean over terms of the same         # a term that trains slowly has r > 1
    L_grad   <- sum_k | G_k - mean(G) r_k^alpha |                    # mean(G) r^alpha is held constant
    w        <- optimizer(grad_w L_grad)
    student  <- optimizer(grad sum_k w_k L_k)                        # by the weights as they were
    w        <- w / mean(w)

G_k is w_k times the norm of L_k's own gradient, so that no second derivative is needed. L_k(0) is the loss of the
first batch, kept in state; where it depends much on the draw, the paper takes its theoretical value. The config's
weights multiply w_k on the way to the student and are hidden from the balance, in which a constant would cancel: they
are priorities. A term whose weight they put to 0, as in phases, has no part in the balance meanwhile. A w_k that an
update takes below 0 is 0.

Traps: one backward pass for each term, up to W. A term whose gradient does not reach W is not weighed: with hints, W
is all of the student. Losses are positive, or r^alpha is not a number. A regulariser is no task: name the `terms` that
are.

Config: step = "gradnorm(alpha=1.5, terms=('kd', 'cross_entropy'))", and roles.weights.rate for the weights' own
optimiser
When: terms whose gradients differ in size by orders, or of which one is learned long before the others.
Checked: by hand; on terms of known scale it makes gradients equal.
"""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import optax

from jaxdistill.core.registry import steps
from jaxdistill.core.types import NO_VARIABLES, Model, Objective, Step, Variables
from jaxdistill.steps.learner import learner, weighed
from jaxdistill.steps.observe import report


@steps.register
def gradnorm(
    student: Model,
    teachers: tuple[Model, ...],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    alpha: float = 1.5,
    layer: str = "",
    terms: tuple[str, ...] = (),
) -> Step:
    """The student learns from frozen teachers, terms weighed so that their gradients are balanced.

    The weights w_k are the role `weights`, and L_k(0) is its state.

    Args:
        student, teachers, objective, optimizer: given by the config.
        alpha: how strongly terms that train slowly are favoured; 0: all gradients are made equal.
        layer: regex of the student's parameters W; empty: all of them. The paper takes the last layer that tasks share.
        terms: the terms that are weighed, by name; empty: all. The others keep their weights.

    Raises:
        ValueError: the objective has no such term; when it is initialised, the student has no such parameter.
    """
    parts, names = learner(student, teachers, objective, optimizer), weighed(objective, terms)

    def chosen(params):
        found = {name: x for name, x in params["student"].items() if re.search(layer, name)}
        if not found:
            raise ValueError(f"layer={layer!r} matches none of {', '.join(sorted(params['student']))}")
        return found

    def init(key, frozen, batch, start=NO_VARIABLES):
        more = Variables({"weights": jnp.ones(len(names))}, {"weights": jnp.zeros(len(names))})
        ts = parts.init(key, frozen, batch, start, more)
        chosen(ts.params)
        return ts

    def update(ts, frozen, batch):
        back, means, state = parts.backward(ts, frozen, batch)
        given, w = objective.weights(ts.step), ts.params["weights"]
        losses = jnp.stack([means[name].compute() for name in names])
        norms = jnp.stack([optax.tree.norm(chosen(back({name: 1.0}))) for name in names])
        active = jnp.stack([given[name] != 0 for name in names])
        first = jnp.where(ts.step == 0, losses, ts.state["weights"])
        average = lambda x: jnp.sum(jnp.where(active, x, 0)) / jnp.maximum(jnp.sum(active), 1)
        trained = jnp.where(first == 0, 1.0, losses / jnp.where(first == 0, 1.0, first))
        rates = trained / average(trained)

        def imbalance(w):
            sizes = w * norms
            wanted = jax.lax.stop_gradient(average(sizes) * rates**alpha)
            return jnp.sum(jnp.where(active, jnp.abs(sizes - wanted), 0))

        weights = given | {name: given[name] * w[k] for k, name in enumerate(names)}
        gradient = back(weights)
        metrics = report(means, objective.total(means, ts.step), gradient, weights)
        new = parts.descend(ts, gradient | {"weights": jax.grad(imbalance)(w)}, state | {"weights": first})
        moved = jnp.maximum(new.params["weights"], jnp.finfo(w.dtype).tiny)
        w = jnp.where(active, moved / average(moved), w)
        return replace(new, params=new.params | {"weights": w}), metrics

    return Step(init, update, objective.streams)
