"""GradNorm: learn term weights that balance the gradient norms of all terms by their training rates.

Chen, Badrinarayanan, Lee and Rabinovich, GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
Multitask Networks, 2018 (arxiv.org/abs/1711.02257), algorithm 1. A term k is one loss L_k of the config.

    for each batch, with weights w_k that start at 1:
        G_k      <- || grad_W w_k L_k ||                                 # W: the student's parameters named by `layer`
        r_k      <- (L_k / L_k(0)) / mean over terms of the same         # a term that trains slowly has r > 1
        L_grad   <- sum_k | G_k - mean(G) r_k^alpha |                    # mean(G) r^alpha is held constant
        w        <- optimizer(grad_w L_grad)
        student  <- optimizer(grad sum_k w_k L_k)                        # with the weights from before this update
        w        <- w / mean(w)

G_k is w_k times the gradient norm of L_k, so no second derivative is needed. L_k(0) is the loss of the first batch and
is kept in the state; the paper takes its theoretical value if it depends much on the random start. The config's weights
are priorities: they multiply w_k in the student's gradient, but not in the balance, where a constant would cancel. A
term whose config weight is 0 (a schedule may set it to 0 for some steps) is left out of the balance meanwhile. A w_k
that an update makes negative becomes 0.

Traps: it takes one backward pass for each term, down to W. A term whose gradient does not reach W is not weighted: with
hints, W must be the whole student. Losses must be positive, or r^alpha is NaN. A regulariser is no task: list the real
tasks in `terms`.

Config: step = "gradnorm(alpha=1.5, terms=('kd', 'cross_entropy'))", and roles.weights.rate for the weights' optimiser
When: gradients of the terms differ in size by orders of magnitude, or one term is learned long before the others.
Checked: by hand; for terms of known scale, the gradients become equal.
"""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from jaxdistill.core.interfaces import Model, Objective, Step
from jaxdistill.core.registry import steps
from jaxdistill.core.sums import Mean
from jaxdistill.core.types import NO_VARIABLES, Array, Batch, ByRole, Key, TrainState, Variables
from jaxdistill.steps.learner import learner, select_terms
from jaxdistill.steps.observe import step_metrics


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
    """Build the GradNorm training step, which learns loss weights w_k to balance the gradient norms of the losses L_k.

    The norm of w_k grad L_k is trained towards mean norm * r_k^alpha. r_k is L_k / L_k(0), divided by its mean over the
    losses; L_k(0) is the loss of the first step. The weight of loss k is w_k times its weight in the config. w_k and
    L_k(0) are stored as `TrainState.params["weights"]` and `TrainState.state["weights"]`.

    Args:
        student, teachers, objective, optimizer: the models, the losses with their weights, and the optimiser, built
            from the other keys of the config.
        alpha: how strongly losses that fall slowly are favoured; 0 gives all gradients the same norm.
        layer: regular expression for the names of the student's parameters whose gradients are measured; "" means all
            parameters. The paper uses the last layer that the tasks share.
        terms: names of the losses whose weights are learned; () means all losses. Losses that are not named keep the
            weights of the config.

    Raises:
        ValueError: `alpha` is negative, or the config has no loss of such a name; when the train state is initialised,
            the student has no parameter that `layer` matches.
    """
    if alpha < 0:
        raise ValueError(f"alpha must be at least 0; got {alpha}")
    parts, names = learner(student, teachers, objective, optimizer), select_terms(objective, terms)

    def shared_params(params: ByRole) -> dict[str, Array]:
        selected = {name: x for name, x in params["student"].items() if re.search(layer, name)}
        if not selected:
            known = ", ".join(sorted(params["student"]))
            raise ValueError(f"layer={layer!r} matches no parameter of the student; it has {known}")
        return selected

    def init(key: Key, frozen: tuple[Variables, ...], batch: Batch, start: Variables = NO_VARIABLES) -> TrainState:
        weights = Variables({"weights": jnp.ones(len(names))}, {"weights": jnp.zeros(len(names))})
        ts = parts.init(key, frozen, batch, start, weights)
        shared_params(ts.params)  # raises if there are none
        return ts

    def update(ts: TrainState, frozen: tuple[Variables, ...], batch: Batch) -> tuple[TrainState, dict[str, Mean]]:
        back, means, state = parts.backward(ts, frozen, batch)
        config_weights, w = objective.weights(ts.step), ts.params["weights"]
        losses = jnp.stack([means[name].compute() for name in names])
        norms = jnp.stack([optax.tree.norm(shared_params(back({name: 1.0}))) for name in names])
        active = jnp.stack([config_weights[name] != 0 for name in names])
        initial = jnp.where(ts.step == 0, losses, ts.state["weights"])
        average = lambda x: jnp.sum(jnp.where(active, x, 0)) / jnp.maximum(jnp.sum(active), 1)
        progress = jnp.where(initial == 0, 1.0, losses / jnp.where(initial == 0, 1.0, initial))
        rates = progress / average(progress)

        def imbalance(w: Float[Array, " terms"]) -> Float[Array, ""]:
            sizes = w * norms
            target = jax.lax.stop_gradient(average(sizes) * rates**alpha)
            return jnp.sum(jnp.where(active, jnp.abs(sizes - target), 0))

        weights = config_weights | {name: config_weights[name] * w[k] for k, name in enumerate(names)}
        gradient = back(weights)
        metrics = step_metrics(means, objective.total(means, ts.step), gradient, weights)
        new = parts.descend(ts, gradient | {"weights": jax.grad(imbalance)(w)}, state | {"weights": initial})
        updated = jnp.maximum(new.params["weights"], jnp.finfo(w.dtype).tiny)
        w = jnp.where(active, updated / average(updated), w)
        return replace(new, params=new.params | {"weights": w}), metrics

    return Step(init, update, objective.streams)
