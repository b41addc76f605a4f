"""Dark experience replay (DER++): rehearse stored examples and the student's earlier logits, against forgetting.

Buzzega, Boschini, Porrello, Abati and Calderara, Dark Experience for General Continual Learning, 2020
(arxiv.org/abs/2004.07211), algorithm 2 (DER++).

    for each batch (x, y):
        z            <- S(x)
        (x', z')     <- drawn from the buffer;  (x'', y'') <- drawn again
        S            <- optimizer(grad_S (L(x, y) + alpha MSE(S(x'), z') + beta CE(S(x''), y'')))
        buffer       <- reservoir(buffer, (x, y, z))            # each row so far is kept with the same probability

S is the student and L the config's loss. A row is an example as a batch has it, with its augmentation. z are the
student's logits when it first met a row: dark knowledge without a teacher. The mean squared error is over rows and
classes, as in the published code. `beta=0` is DER, `alpha=0` is plain experience replay (Riemer et al., 2019); with
both, the student keeps the classes of earlier tasks.

Reservoir sampling (Vitter, 1985, doi.org/10.1145/3147.3165) needs no task boundaries. Row n that training has seen,
from 0, goes to place n of the buffer while the buffer is not full. A later row goes to a random place below n + 1, and
is dropped if the buffer has no such place. If two rows of a batch get the same place, the later one stays. The buffer
is the entry `buffer` of the train state's state, the same on every device, saved and resumed. Each step draws as many
rows as a batch has, with replacement. The log has `replay/logits` and `replay/labels`, the two losses on drawn rows.

Config: step = "replay(size=200, alpha=0.5, beta=0.5)"; data.order = "tasks(groups=((0, 1), (2, 3)), steps=100)";
    objective.cross_entropy.weight = 1.0
When: the order of the examples is fixed, such as one task after the other, and a few hundred examples may be stored.
Checked: the reservoir row by row; draws and both terms by hand; the tests reject a buffer of the newest rows.
Experiment: `experiments/continual` (split digits: 85.6 % over all classes, plain gradient descent 19.6).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from jaxdistill.core.collectives import gather, psum, row_keys
from jaxdistill.core.interfaces import Model, Objective, Step
from jaxdistill.core.registry import steps
from jaxdistill.core.sums import Mean, shared_mean
from jaxdistill.core.types import NO_VARIABLES, Array, Batch, Key, Params, Rows, TrainState, Variables, struct
from jaxdistill.losses.logits.logit_mse import mean_squared_error
from jaxdistill.losses.task.cross_entropy import softmax_cross_entropy
from jaxdistill.losses.term import precise
from jaxdistill.steps.learner import learner
from jaxdistill.steps.observe import step_key, step_metrics

MAX_COUNT = 2**30  # the int32 count of rows stops here; the probability of keeping a row then stays constant


@struct
class Buffer:
    """Stored training examples, with the student's logits from the step that stored them.

    Args:
        rows: `{field: [size, ...]}`, the batch fields of the stored examples; the mask of unused places is 0
        logits: `[size, *batch, classes]`, the student's logits
        seen: number of examples that training has met so far, int32 scalar
    """

    rows: dict[str, Any]  # arrays, or what a pytree of arrays is mapped to: shapes, shardings
    logits: Any
    seen: Any


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
    """Build the DER++ training step: rehearse stored examples and the logits that the student had for them.

        losses of the config + alpha mean((student(x1) - z1)**2) + beta CE(student(x2), y2)

    (x1, z1) and (x2, y2) are drawn from a buffer of earlier examples x with labels y and earlier student logits z. CE
    is the cross-entropy. Teachers are optional.

    Args:
        student, teachers, objective, optimizer: the models, the losses with their weights, and the optimiser, built
            from the other keys of the config.
        size: number of examples that the buffer holds.
        alpha: weight of the squared error between new and stored logits.
        beta: weight of the cross-entropy with the stored labels.

    Raises:
        ValueError: the size is below 1, or a weight is negative.
    """
    if size < 1 or min(alpha, beta) < 0:
        raise ValueError(f"size must be at least 1, alpha and beta at least 0; got {size}, {alpha} and {beta}")
    parts = learner(student, teachers, objective, optimizer)

    def student_logits(params: Params, ts: TrainState, rows: Rows, key: Key) -> Float[Array, "*batch classes"]:
        logits: Any = student.apply(params, ts.state["student"], rows, train=True, key=key)[0].dense().logits
        # select before the loss: a NaN in a masked row would make the gradient NaN
        return precise(jnp.where(rows["mask"][..., None] != 0, logits, 0))

    def init(key: Key, frozen: tuple[Variables, ...], batch: Batch, start: Variables = NO_VARIABLES) -> TrainState:
        ts = parts.init(key, frozen, batch, start)
        shapes = jax.eval_shape(student_logits, ts.params["student"], ts, batch["train"], key)
        empty = lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype)
        buffer = Buffer(jax.tree.map(empty, dict(batch["train"])), empty(shapes), jnp.zeros((), jnp.int32))
        return replace(ts, state=ts.state | {"buffer": buffer})

    def replay_loss(params: Params, ts: TrainState, keys: list[Key], count: int) -> tuple[Array, dict[str, Mean]]:
        first, second = (draw_rows(ts.state["buffer"], key, count) for key in keys[:2])
        first_logits = student_logits(params, ts, first.rows, keys[2])
        second_logits = student_logits(params, ts, second.rows, keys[3])
        mse = shared_mean(mean_squared_error(first_logits, first.logits), first.rows["mask"])
        ce = shared_mean(softmax_cross_entropy(second_logits, second.rows["label"]), second.rows["mask"])
        return alpha * mse[0] + beta * ce[0], {"replay/logits": mse[1], "replay/labels": ce[1]}

    def update(ts: TrainState, frozen: tuple[Variables, ...], batch: Batch) -> tuple[TrainState, dict[str, Mean]]:
        gradient, means, state = parts.gradient(ts, frozen, batch, objective.weights(ts.step))
        rows, params = batch["train"], ts.params["student"]
        *keys, logits_key, reservoir_key = jax.random.split(step_key(ts), 6)
        replay_gradient, replay_metrics = jax.grad(replay_loss, has_aux=True)(params, ts, keys, len(rows["mask"]))
        gradient = gradient | {"student": optax.tree.add(gradient["student"], psum(replay_gradient))}
        all_rows, z = gather((dict(rows), student_logits(params, ts, rows, logits_key)))
        buffer = reservoir(ts.state["buffer"], all_rows, z, reservoir_key)
        new = parts.descend(ts, gradient, state | {"buffer": buffer})
        return new, step_metrics(means, objective.total(means, ts.step), gradient) | replay_metrics

    return Step(init, update, objective.streams)


def draw_rows(buffer: Buffer, key: Array, count: int) -> Buffer:
    """Draw `count` examples from a replay buffer, uniformly and with replacement, and return them as a `Buffer`.

    If the buffer is empty, the mask of the drawn examples is 0.
    """
    filled = jnp.clip(buffer.seen, 1, len(buffer.logits))
    place = jax.vmap(lambda row_key: jax.random.randint(row_key, (), 0, filled))(row_keys(key, count))
    select = lambda x: x[place]
    return Buffer(jax.tree.map(select, buffer.rows), select(buffer.logits), buffer.seen)


def reservoir(buffer: Buffer, rows: Mapping[str, Array], logits: Array, key: Array) -> Buffer:
    """Store the examples of a batch in a replay buffer by reservoir sampling, and return the new buffer.

    After any number of updates, each example met so far is in the buffer with the same probability. Examples whose mask
    is 0 are skipped.

    Args:
        buffer: the buffer before the update.
        rows: `{field: [rows, ...]}`, the examples of the global batch.
        logits: the student's logits of these examples, `[rows, *batch, classes]`.
        key: PRNG key of this update.
    """
    size, order = len(buffer.logits), jnp.arange(len(logits))
    counts = jnp.any(rows["mask"].reshape(len(order), -1) != 0, axis=1)
    number = buffer.seen + jnp.cumsum(counts, dtype=jnp.int32) - 1
    draw = lambda row, n: jax.random.randint(jax.random.fold_in(key, row), (), 0, jnp.maximum(n, 0) + 1)
    place = jnp.where(counts, jnp.where(number < size, number, jax.vmap(draw)(order, number)), size)
    overwritten = (place[None, :] == place[:, None]) & (order[None, :] > order[:, None])
    place = jnp.where(jnp.any(overwritten, axis=1), size, place)  # outside the buffer: dropped
    put = lambda old, new: old.at[place].set(new.astype(old.dtype), mode="drop")
    seen = jnp.minimum(buffer.seen + jnp.sum(counts, dtype=jnp.int32), MAX_COUNT)
    return Buffer(jax.tree.map(put, buffer.rows, dict(rows)), put(buffer.logits, logits), seen)
