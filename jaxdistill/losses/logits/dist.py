"""Relations instead of values: student and teacher agree up to scale and shift, in each row and in each class.

Huang et al., Knowledge Distillation from A Stronger Teacher, 2022 (arxiv.org/abs/2205.10536). With r the Pearson
correlation of probabilities softmax(z / T), over the classes of a row or over the rows of a class:

    T^2 [b (1 - mean over rows r) + g (1 - mean over classes r)]          b = g = 1

Correlation over the rows of a class needs the whole batch: rows are gathered from all devices, padding is left out, and
the loss is a scalar. It follows that the batch size is a hyperparameter: below a few rows for each class there is
little to correlate.

Where one side does not vary (a zero-initialised head) there is no correlation: r is 0 with a gradient of 0, as in
published code its value is; there its gradient explodes. A class that the teacher masks with -inf in every row is none
of the classes that are averaged over.

Config: objective.dist.term = "dist(beta=1.0, gamma=1.0, temperature=4.0)"
When: a teacher far stronger than its student, whose probabilities it cannot reach; classification with large batches.
Checked: published code (DIST_KD), in value and gradient.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxdistill.core.collectives import gather
from jaxdistill.core.registry import losses
from jaxdistill.core.schedules import Scalar
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.term import precise, softened

EPSILON = 1e-8


def pearson_correlation(
    x: Float[Array, "rows columns"], y: Float[Array, "rows columns"], valid: Bool[Array, "rows columns"]
) -> Float[Array, " rows"]:
    """The correlation of each row of `x` with that of `y`, over its valid entries; 0 where one does not vary."""

    def centred(x: Array) -> Array:
        x = jnp.where(valid, x, 0.0)
        return jnp.where(valid, x - jnp.sum(x, axis=1, keepdims=True) / count, 0.0)

    count = jnp.maximum(jnp.sum(valid, axis=1, keepdims=True), 1)
    x, y = centred(x), centred(y)
    squares = jnp.stack([jnp.sum(x**2, axis=1), jnp.sum(y**2, axis=1)])
    still = jnp.any(squares == 0, axis=0)  # not `> 0`, which would hide a NaN; the gradient of a root at 0 is infinite
    norms = jnp.sqrt(jnp.where(still, 1.0, squares))
    return jnp.where(still, 0.0, jnp.sum(x * y, axis=1) / (norms[0] * norms[1] + EPSILON))


def relation_difference(
    student: Float[Array, "rows classes"],
    teacher: Float[Array, "rows classes"],
    valid: Bool[Array, " rows"],
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: Float[Array, ""] | float = 1.0,
) -> Float[Array, ""]:
    """B (1 - mean over valid rows r) + g (1 - mean over classes r) of softened probabilities, without T^2."""
    student, teacher = (jnp.where(valid[:, None], precise(logits), 0.0) for logits in (student, teacher))
    q, p = (jax.nn.softmax(logits / temperature) for logits in (student, teacher))
    every = jnp.broadcast_to(valid[:, None], q.shape)
    has = jnp.any(every & (teacher != -jnp.inf), axis=0)
    between_classes = _mean(1 - pearson_correlation(q, p, every), valid)
    between_rows = _mean(1 - pearson_correlation(q.T, p.T, every.T), has)
    return beta * between_classes + gamma * between_rows


def _mean(values: Array, valid: Array) -> Array:
    return jnp.sum(jnp.where(valid, values, 0.0)) / jnp.maximum(jnp.sum(valid), 1)


@losses.register
def dist(beta: float = 1.0, gamma: float = 1.0, temperature: Scalar = 1.0, scale_t2: bool = True) -> Term:
    """Correlations with the fused teacher, within rows and within classes.

    Args:
        beta: weight of the relations within a row.
        gamma: weight of the relations within a class.
        temperature: number or schedule, positive.
        scale_t2: multiply by T^2, so that the gradient keeps its size; the authors' code has neither.

    Raises:
        ValueError: `beta` or `gamma` is negative.
    """
    if beta < 0 or gamma < 0:
        raise ValueError(f"beta and gamma are 0 or more; got beta={beta}, gamma={gamma}")

    def values(signals: Signals) -> Array:
        rows = lambda logits: logits.reshape(-1, logits.shape[-1])
        own = rows(signals.student.logits), rows(signals.teacher.logits), signals.mask.ravel() != 0
        student, teacher, valid = gather(own)
        return relation_difference(student, teacher, valid, beta, gamma, signals.temperature)

    return softened(values, temperature, scale_t2, local=False)
