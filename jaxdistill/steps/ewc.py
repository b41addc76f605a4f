"""Elastic weight consolidation: what mattered to earlier tasks is held where it was.

Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, 2017 (arxiv.org/abs/1612.00796), equation 3;
one anchor for all tasks so far, as in Schwarz et al., Progress and Compress, 2018 (arxiv.org/abs/1805.06370); what
mattered is measured while training, as in Chaudhry et al., Riemannian Walk, 2018 (arxiv.org/abs/1801.10112).

    F, f, S* <- 0, 0, S
    for each batch:
        f        <- momentum f + (1 - momentum) rows (grad_S mean log p(y))^2,  y drawn from p = S(x)
        S        <- optimizer(grad_S L(S))
        S        <- S* + (S - S*) / (1 + weight F)
        at the end of every task:
            F    <- F + f;  S* <- S

The pull towards S* is taken after the optimiser, as AdamW decays weights (Loshchilov and Hutter, 2017,
arxiv.org/abs/1711.05101), and where it leads to: with plain descent this is the paper's penalty lambda / 2 F
(S - S*)^2, of lambda = weight / rate, in a step of backward Euler. As a gradient it overshoots where rate lambda F > 2,
and F differs by orders of magnitude from param to param: it diverged before it held.

f is the diagonal of the Fisher information of the task that comes to its end. Labels are drawn from the student, not
taken from the data: what is learned already would look as if it did not matter. Scores of drawn labels are independent
with mean 0, so that the square of their mean, times the rows, is on average the mean of their squares: no gradient of a
single row is formed. The student says its p as in evaluation. The state `anchor` has F, f and S*; the log has
`anchor/distance`, 1/2 sum F (S - S*)^2.

Config: step = "ewc(weight=10.0, every=200)"; data.order = "tasks(groups=((0, 1), (2, 3)), steps=200)";
    objective.cross_entropy.weight = 1.0
When: no row may be kept, and it is known of which task a record is; among classes of all tasks it does not help.
Checked: by hand; Fisher information beside the closed form of a linear student; without weight it is plain descent.
Experiment: `experiments/continual` (split digits, ten seeds: 95.7 %
    where the task is known, its twin and plain descent 91.4).
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdistill.core.collectives import psum, row_keys
from jaxdistill.core.registry import steps
from jaxdistill.core.sums import Mean, shared_mean
from jaxdistill.core.types import NO_VARIABLES, Model, Objective, PyTree, Step, struct
from jaxdistill.losses.task.cross_entropy import softmax_cross_entropy
from jaxdistill.losses.term import precise
from jaxdistill.steps.learner import learner
from jaxdistill.steps.observe import own_key, report


@struct
class Anchor:
    """Where the student was at the end of the last task, and what mattered; each in the form of its params.

    Args:
        params: S*
        fisher: F, of all tasks that ended
        recent: f, of the last batches
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
    """The student learns what the config says, and is held where earlier tasks need it.

    Args:
        student, teachers, objective, optimizer: given by the config.
        weight: of what holds it: a param of importance F comes 1 + weight F times closer to where it was, at each step.
        every: steps of a task.
        momentum: what the importance of the last batches keeps of itself.

    Raises:
        ValueError: a number is out of range.
    """
    if weight < 0 or every < 1 or not 0 <= momentum < 1:
        given = f"weight={weight}, every={every}, momentum={momentum}"
        raise ValueError(f"weight is 0 or more, every 1 or more, momentum from 0 to below 1; got {given}")
    parts = learner(student, teachers, objective, optimizer)

    def init(key, frozen, batch, start=NO_VARIABLES):
        ts = parts.init(key, frozen, batch, start)
        own = ts.params["student"]
        anchor = Anchor(
            jax.tree.map(jnp.copy, own), jax.tree.map(jnp.zeros_like, own), jax.tree.map(jnp.zeros_like, own)
        )
        return replace(ts, state=ts.state | {"anchor": anchor})

    def surprise(params, ts, rows, key):
        said: Any = student.apply(params, ts.state["student"], rows, train=False, key=key)[0].dense().logits
        logits = precise(jnp.where(rows["mask"][..., None] != 0, said, 0))
        draw = jax.vmap(jax.random.categorical)
        label = draw(row_keys(key, len(logits)), jax.lax.stop_gradient(logits))
        share, whole = shared_mean(softmax_cross_entropy(logits, label), rows["mask"])
        return share, whole.count

    def update(ts, frozen, batch):
        gradient, means, state = parts.gradient(ts, frozen, batch, objective.weights(ts.step))
        params, anchor = ts.params["student"], ts.state["anchor"]
        key = own_key(ts)
        score, rows = jax.grad(surprise, has_aux=True)(params, ts, batch["train"], key)
        blend = lambda f, g: momentum * f + (1 - momentum) * rows * g**2
        recent = jax.tree.map(blend, anchor.recent, psum(score))

        new = parts.descend(ts, gradient, state)
        hold = lambda a, f, s: a + (s - a) / (1 + weight * f)
        own = jax.tree.map(hold, anchor.params, anchor.fisher, new.params["student"])

        ended = new.step % every == 0
        latest = Anchor(own, optax.tree.add(anchor.fisher, recent), recent)
        kept = jax.tree.map(lambda a, b: jnp.where(ended, a, b), latest, replace(anchor, recent=recent))
        off = jax.tree.map(lambda f, s, a: jnp.vdot(f, (s - a) ** 2) / 2, anchor.fisher, own, anchor.params)
        distance = {"anchor/distance": Mean(optax.tree.sum(off), jnp.ones(()))}
        metrics = report(means, objective.total(means, ts.step), gradient)
        return replace(
            new, params=new.params | {"student": own}, state=new.state | {"anchor": kept}
        ), metrics | distance

    return Step(init, update, objective.streams)
