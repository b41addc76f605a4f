"""DIST: correlate student with teacher probabilities, within each example (inter-class) and each class (intra-class).

Huang et al., Knowledge Distillation from A Stronger Teacher, 2022 (arxiv.org/abs/2205.10536). With r the Pearson
correlation of the student's with the teacher's probabilities softmax(z / T) of logits z, over the classes of one row
(an example of the batch) or over the rows of the batch for one class:

    T^2 [b (1 - mean over rows r) + g (1 - mean over classes r)]          b = g = 1

Correlations ignore scale and shift, so the student need not match the values of the probabilities.

The correlation within a class needs the whole batch: rows are gathered from all devices, padding is left out, and the
loss is a scalar. The batch size is therefore a hyperparameter: with only a few rows per class there is little to
correlate.

If the probabilities of student or teacher are constant (a zero-initialised head), their correlation is undefined. Here
r is then 0 with a gradient of 0. The published code also gives 0, but its gradient explodes. The mean over classes
leaves out a class that the teacher masks with -inf in every row.

Config: objective.dist.term = "dist(beta=1.0, gamma=1.0, temperature=4.0)"
When: the teacher is far stronger than the student, which cannot match its probabilities; classification with large
batches.
Checked: against published code (DIST_KD), in value and gradient.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxdistill.core.collectives import gather
from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.schedules import Scalar
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.logits.temperature import softened
from jaxdistill.losses.term import precise

EPSILON = 1e-8


def pearson_correlation(
    x: Float[Array, "rows columns"], y: Float[Array, "rows columns"], valid: Bool[Array, "rows columns"]
) -> Float[Array, " rows"]:
    """Compute the Pearson correlation of each row of `x` with the same row of `y`.

    Only entries where `valid` is True are used. If the row of `x` or of `y` is constant, the correlation is 0, with a
    gradient of 0.
    """

    def centre(x: Array) -> Array:
        x = jnp.where(valid, x, 0.0)
        return jnp.where(valid, x - jnp.sum(x, axis=1, keepdims=True) / count, 0.0)

    count = jnp.maximum(jnp.sum(valid, axis=1, keepdims=True), 1)
    x, y = centre(x), centre(y)
    squares = jnp.stack([jnp.sum(x**2, axis=1), jnp.sum(y**2, axis=1)])
    # `== 0` and not `> 0`, which would hide a NaN; the gradient of a root at 0 is infinite
    constant = jnp.any(squares == 0, axis=0)
    norms = jnp.sqrt(jnp.where(constant, 1.0, squares))
    return jnp.where(constant, 0.0, jnp.sum(x * y, axis=1) / (norms[0] * norms[1] + EPSILON))


def correlation_distance(
    student: Float[Array, "rows classes"],
    teacher: Float[Array, "rows classes"],
    valid: Bool[Array, " rows"],
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: Float[Array, ""] | float = 1.0,
) -> Float[Array, ""]:
    """Compute the DIST loss of a batch, without the factor T^2: beta mean_i(1 - r_i) + gamma mean_c(1 - r_c).

    r is the Pearson correlation of the student's with the teacher's probabilities softmax(logits / T): r_i over the
    classes of example i, r_c over the examples for class c.

    Args:
        student: the student's logits.
        teacher: the teacher's logits.
        valid: True for real examples, False for padding.
        beta: weight of the correlations within examples (inter-class).
        gamma: weight of the correlations within classes (intra-class).
        temperature: T, positive.
    """
    student, teacher = (jnp.where(valid[:, None], precise(logits), 0.0) for logits in (student, teacher))
    q, p = (jax.nn.softmax(logits / temperature) for logits in (student, teacher))
    valid_entries = jnp.broadcast_to(valid[:, None], q.shape)  # [rows, classes]
    unmasked_classes = jnp.any(valid_entries & (teacher != -jnp.inf), axis=0)
    inter_class = _mean(1 - pearson_correlation(q, p, valid_entries), valid)
    intra_class = _mean(1 - pearson_correlation(q.T, p.T, valid_entries.T), unmasked_classes)
    return beta * inter_class + gamma * intra_class


def _mean(values: Array, valid: Array) -> Array:
    return jnp.sum(jnp.where(valid, values, 0.0)) / jnp.maximum(jnp.sum(valid), 1)


@losses.register
def dist(beta: float = 1.0, gamma: float = 1.0, temperature: Scalar = 1.0, scale_t2: bool = True) -> Term:
    """Build the DIST loss term T^2 [beta mean_i(1 - r_i) + gamma mean_c(1 - r_c)], one scalar for the whole batch.

    r is the Pearson correlation of the student's with the teacher's probabilities softmax(logits / T): r_i over the
    classes of example i, r_c over the examples of the batch for class c. Several teachers are first combined into one
    by the config's fusion, such as `average()`.

    Args:
        beta: weight of the correlations within examples (inter-class).
        gamma: weight of the correlations within classes (intra-class).
        temperature: T, a positive number or a schedule over the training steps.
        scale_t2: multiply the loss by T^2, so that its gradient keeps its size when T changes; the authors' code has
            neither T nor T^2.

    Raises:
        ValueError: `beta` or `gamma` is negative, or the temperature is not positive.
    """
    if beta < 0 or gamma < 0:
        raise ValueError(f"beta and gamma must be 0 or more; got beta={beta}, gamma={gamma}")

    def values(signals: Signals) -> Array:
        rows = lambda logits: logits.reshape(-1, logits.shape[-1])
        local_rows = rows(signals.student.logits), rows(signals.teacher.logits), signals.mask.ravel() != 0
        student, teacher, valid = gather(local_rows)
        return correlation_distance(student, teacher, valid, beta, gamma, signals.temperature)

    return softened(values, temperature, scale_t2, local=False)
