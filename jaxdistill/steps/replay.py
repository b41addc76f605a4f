"""Replay: a small buffer of earlier rows keeps what a stream of tasks would make the student forget.

Buzzega, Boschini, Porrello, Abati and Calderara, Dark Experience for General Continual Learning, 2020
(arxiv.org/abs/2004.07211), algorithm 2 (DER++).

    for each batch (x, y):
        z            <- S(x)
        (x', z')     <- drawn from the buffer;  (x'', y'') <- drawn anew
        S            <- optimizer(grad_S (L(x, y) + alpha MSE(S(x'), z') + beta CE(S(x''), y'')))
        buffer       <- reservoir(buffer, (x, y, z))            # every row so far is in it with one chance

z is what the student said when it met a row: its own dark knowledge, of no teacher. The mean squared error is over
rows and classes, as in the published code. `beta=0` is DER, `alpha=0` plain experience replay (Riemer et al., 2019);
both together hold the classes of earlier tasks in their places.

Reservoir sampling (Vitter, 1985, doi.org/10.1145/3147.3165) needs to know of no tasks: row n, from 0, of a stream takes
the place n, or a random one of n + 1, and is dropped if the buffer has no such place. Of one batch the later row stays.
The buffer, the state `buffer`, is the same on every device, saved and resumed. Rows are given back as the batch had
them, augmentation included, with replacement, as many as a batch has. The log has `replay/logits` and `replay/labels`.

Config: step = "replay(size=200, alpha=0.5, beta=0.5)"; data.order = "tasks(groups=((0, 1), (2, 3)), steps=100)";
    objective.cross_entropy.weight = 1.0
When: records come in an order that cannot be changed, and a few hundred of them may be kept.
Checked: the reservoir row by row; draws and both terms by hand; a buffer of the newest rows is told apart.
Experiment: `experiments/continual` (split digits: 85.6 % of all classes, where plain descent has 19.6).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdistill.core.collectives import gather, psum, row_keys
from jaxdistill.core.registry import steps
from jaxdistill.core.sums import shared_mean
from jaxdistill.core.types import NO_VARIABLES, Array, Model, Objective, Step, struct
from jaxdistill.losses.logits.logit_mse import mean_squared_error
from jaxdistill.losses.task.cross_entropy import softmax_cross_entropy
from jaxdistill.losses.term import precise
from jaxdistill.steps.learner import learner
from jaxdistill.steps.observe import own_key, report

MANY = 2**30  # rows are counted in int32; after so many, one more is as likely to be kept as this one


@struct
class Buffer:
    """Rows that were met, and what the student said of them then.

    Args:
        rows: `{field: [size, ...]}`, of mask 0 where nothing is yet
        logits: `[size, *batch, classes]`
        seen: how many rows came by, int32 scalar
    """

    rows: dict[str, Array]
    logits: Array
    seen: Array


@steps.register
def replay(
    student: Model,
    teachers: tuple[Model, ...],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    size: int,
    alpha: float = 0.5,
    beta: float = 0.5,
) -> Step:
    """The student learns what the config says, from frozen teachers or none, and rehearses what it met before.

    Args:
        student, teachers, objective, optimizer: given by the config.
        size: rows that the buffer holds.
        alpha: weight of what the student said of earlier rows.
        beta: weight of their labels.

    Raises:
        ValueError: the buffer holds nothing, or a weight is below 0.
    """
    if size < 1 or min(alpha, beta) < 0:
        raise ValueError(f"size is 1 or more, alpha and beta 0 or more; got {size}, {alpha} and {beta}")
    parts = learner(student, teachers, objective, optimizer)

    def say(params, ts, rows, key):
        logits: Any = student.apply(params, ts.state["student"], rows, train=True, key=key)[0].dense().logits
        # selected first: the gradient of a NaN in a row that does not count would be one
        return precise(jnp.where(rows["mask"][..., None] != 0, logits, 0))

    def init(key, frozen, batch, start=NO_VARIABLES):
        ts = parts.init(key, frozen, batch, start)
        said = jax.eval_shape(say, ts.params["student"], ts, batch["train"], key)
        places = lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype)
        buffer = Buffer(jax.tree.map(places, dict(batch["train"])), places(said), jnp.zeros((), jnp.int32))
        return replace(ts, state=ts.state | {"buffer": buffer})

    def rehearsed(params, ts, keys, count):
        old, again = (drawn(ts.state["buffer"], key, count) for key in keys[:2])
        told, labelled = (say(params, ts, each.rows, key) for each, key in zip((old, again), keys[2:], strict=True))
        logits = shared_mean(mean_squared_error(told, old.logits), old.rows["mask"])
        labels = shared_mean(softmax_cross_entropy(labelled, again.rows["label"]), again.rows["mask"])
        return alpha * logits[0] + beta * labels[0], {"replay/logits": logits[1], "replay/labels": labels[1]}

    def update(ts, frozen, batch):
        gradient, means, state = parts.gradient(ts, frozen, batch, objective.weights(ts.step))
        rows, params = batch["train"], ts.params["student"]
        *keys, own, places = jax.random.split(own_key(ts), 6)
        slope, watched = jax.grad(rehearsed, has_aux=True)(params, ts, keys, len(rows["mask"]))
        gradient = gradient | {"student": optax.tree.add(gradient["student"], psum(slope))}
        met, z = gather((dict(rows), say(params, ts, rows, own)))
        buffer = reservoir(ts.state["buffer"], met, z, places)
        new = parts.descend(ts, gradient, state | {"buffer": buffer})
        return new, report(means, objective.total(means, ts.step), gradient) | watched

    return Step(init, update, objective.streams)


def drawn(buffer: Buffer, key: Array, count: int) -> Buffer:
    """So many rows of those that are there, with replacement; of mask 0 while there are none."""
    there = jnp.clip(buffer.seen, 1, len(buffer.logits))
    place = jax.vmap(lambda own: jax.random.randint(own, (), 0, there))(row_keys(key, count))
    take = lambda x: x[place]
    return Buffer(jax.tree.map(take, buffer.rows), take(buffer.logits), buffer.seen)


def reservoir(buffer: Buffer, rows: Mapping[str, Array], logits: Array, key: Array) -> Buffer:
    """The buffer after these rows of the whole batch came by, one after the other; what does not count, does not come.

    Args:
        buffer: before.
        rows: `{field: [rows, ...]}`.
        logits: of them, `[rows, *batch, classes]`.
        key: of this call.
    """
    size, order = len(buffer.logits), jnp.arange(len(logits))
    counts = jnp.any(rows["mask"].reshape(len(order), -1) != 0, axis=1)
    number = buffer.seen + jnp.cumsum(counts, dtype=jnp.int32) - 1
    draw = lambda row, n: jax.random.randint(jax.random.fold_in(key, row), (), 0, jnp.maximum(n, 0) + 1)
    place = jnp.where(counts, jnp.where(number < size, number, jax.vmap(draw)(order, number)), size)
    later = (place[None, :] == place[:, None]) & (order[None, :] > order[:, None])
    place = jnp.where(jnp.any(later, axis=1), size, place)  # beyond the buffer: dropped
    put = lambda old, new: old.at[place].set(new.astype(old.dtype), mode="drop")
    seen = jnp.minimum(buffer.seen + jnp.sum(counts, dtype=jnp.int32), MANY)
    return Buffer(jax.tree.map(put, buffer.rows, dict(rows)), put(buffer.logits, logits), seen)
