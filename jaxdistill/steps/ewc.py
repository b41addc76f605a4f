"""Elastic weight consolidation (EWC): hold parameters that matter to earlier tasks near their earlier values.

Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, 2017 (arxiv.org/abs/1612.00796), equation 3;
one anchor for all tasks so far, as in Schwarz et al., Progress and Compress, 2018 (arxiv.org/abs/1805.06370); the
Fisher information is estimated during training, as in Chaudhry et al., Riemannian Walk, 2018
(arxiv.org/abs/1801.10112). S are the student's parameters, S* those at the end of the last task, F and f the Fisher
information of all finished tasks and of the current one, L is the config's loss, and `rows` the examples in a batch.

    F, f, S* <- 0, 0, S
    for each batch:
        f        <- momentum f + (1 - momentum) rows (grad_S mean log p(y))^2,  y drawn from p = S(x)
        S        <- optimizer(grad_S L(S))
        S        <- S* + (S - S*) / (1 + weight F)
        at the end of every task:
            F    <- F + f;  S* <- S

The pull towards S* is applied after the optimiser, as AdamW decays weights (Loshchilov and Hutter, 2017,
arxiv.org/abs/1711.05101). It is a backward Euler step: with plain gradient descent it minimises the paper's penalty
lambda / 2 F (S - S*)^2 with lambda = weight / rate. Added to the gradient instead, the penalty overshoots where
rate lambda F > 2. F differs by orders of magnitude between parameters, so that training diverged before the penalty
was strong enough to hold them.

f is the diagonal of the Fisher information. Its labels are drawn from the student's prediction. With the labels of the
data, parameters of what is learned already would seem unimportant. Scores of drawn labels are independent with mean 0.
So the expectation of rows times the squared mean score is the mean of the squared scores, and no gradient of a single
example is needed. The student predicts p in evaluation mode. The entry `anchor` of the train state's state holds F, f
and S*. The log has `anchor/distance`, 1/2 sum F (S - S*)^2.

Config: step = "ewc(weight=10.0, every=200)"; data.order = "tasks(groups=((0, 1), (2, 3)), steps=200)";
    objective.cross_entropy.weight = 1.0
When: no examples may be stored, and the task of an example is known at test time. Without it, EWC does not help.
Checked: by hand; Fisher information against the closed form of a linear student; weight 0 is plain gradient descent.
Experiment: `experiments/continual` (split digits, ten seeds: 95.7 % when the task is known at test time; 91.4
    without the anchor, and with plain gradient descent).
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdistill.core.collectives import psum, row_keys
from jaxdistill.core.interfaces import Model, Objective, Step
from jaxdistill.core.registry import steps
from jaxdistill.core.sums import Mean, shared_mean
from jaxdistill.core.types import NO_VARIABLES, Array, Batch, Key, Params, PyTree, Rows, TrainState, Variables, struct
from jaxdistill.losses.task.cross_entropy import softmax_cross_entropy
from jaxdistill.losses.term import precise
from jaxdistill.steps.learner import learner
from jaxdistill.steps.observe import step_key, step_metrics


@struct
class Anchor:
    """The values towards which EWC pulls the student's parameters, and the strength of the pull for each parameter.

    Args:
        params: S*, the student's parameters at the end of the last task
        fisher: F, the Fisher information of each parameter, summed over all finished tasks
        recent: f, the estimate of the Fisher information in the current task
    """

    params: PyTree
    fisher: PyTree
    recent: PyTree


@steps.register
def ewc(
    student: Model,
    teachers: tuple[Model, ...],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    weight: float,
    every: int,
    momentum: float = 0.9,
) -> Step:
    """Build the EWC training step, which holds parameters that matter to earlier tasks near their earlier values S*.

    After each update by the optimiser, S <- S* + (S - S*) / (1 + weight F). S are the student's parameters, S* those at
    the end of the last task, and F is the Fisher information of each parameter, summed over the finished tasks.

    Args:
        student, teachers, objective, optimizer: the models, the losses with their weights, and the optimiser, built
            from the other keys of the config.
        weight: strength of the pull towards S*, 0 or more.
        every: number of training steps of a task.
        momentum: weight of the old estimate in the moving average that estimates the Fisher information of the current
            task.

    Raises:
        ValueError: a number is out of range.
    """
    if weight < 0 or every < 1 or not 0 <= momentum < 1:
        values = f"weight={weight}, every={every}, momentum={momentum}"
        raise ValueError(f"weight must be at least 0, every at least 1, momentum in [0, 1); got {values}")
    parts = learner(student, teachers, objective, optimizer)

    def init(key: Key, frozen: tuple[Variables, ...], batch: Batch, start: Variables = NO_VARIABLES) -> TrainState:
        ts = parts.init(key, frozen, batch, start)
        params = ts.params["student"]
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)
        anchor = Anchor(jax.tree.map(jnp.copy, params), zeros(), zeros())
        return replace(ts, state=ts.state | {"anchor": anchor})

    def drawn_label_loss(params: Params, ts: TrainState, rows: Rows, key: Key) -> tuple[Array, Array]:
        raw: Any = student.apply(params, ts.state["student"], rows, train=False, key=key)[0].dense().logits
        logits = precise(jnp.where(rows["mask"][..., None] != 0, raw, 0))
        draw = jax.vmap(jax.random.categorical)
        label = draw(row_keys(key, len(logits)), jax.lax.stop_gradient(logits))
        local_loss, loss = shared_mean(softmax_cross_entropy(logits, label), rows["mask"])
        return local_loss, loss.count

    def update(ts: TrainState, frozen: tuple[Variables, ...], batch: Batch) -> tuple[TrainState, dict[str, Mean]]:
        gradient, means, state = parts.gradient(ts, frozen, batch, objective.weights(ts.step))
        params, anchor = ts.params["student"], ts.state["anchor"]
        key = step_key(ts)
        score, rows = jax.grad(drawn_label_loss, has_aux=True)(params, ts, batch["train"], key)
        blend = lambda f, g: momentum * f + (1 - momentum) * rows * g**2
        recent = jax.tree.map(blend, anchor.recent, psum(score))

        new = parts.descend(ts, gradient, state)
        hold = lambda a, f, s: a + (s - a) / (1 + weight * f)
        held = jax.tree.map(hold, anchor.params, anchor.fisher, new.params["student"])

        ended = new.step % every == 0
        task_anchor = Anchor(held, optax.tree.add(anchor.fisher, recent), recent)
        new_anchor = jax.tree.map(lambda a, b: jnp.where(ended, a, b), task_anchor, replace(anchor, recent=recent))
        distances = jax.tree.map(lambda f, s, a: jnp.vdot(f, (s - a) ** 2) / 2, anchor.fisher, held, anchor.params)
        anchor_metrics = {"anchor/distance": Mean(optax.tree.sum(distances), jnp.ones(()))}
        metrics = step_metrics(means, objective.total(means, ts.step), gradient)
        return replace(
            new, params=new.params | {"student": held}, state=new.state | {"anchor": new_anchor}
        ), metrics | anchor_metrics

    return Step(init, update, objective.streams)
