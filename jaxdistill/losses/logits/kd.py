"""Soft targets.

Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015 (arxiv.org/abs/1503.02531).

    T^2 KL(softmax(t / T) || softmax(s / T))

T^2 keeps the size of the gradient when T changes. Dark knowledge grows with T, up to about 4: of a digit that it never
saw, a student names 24 % where T = 1, 43 % at 2, 54 % at 4 and 55 % at 8, and 9 % if it learns from the teacher's
argmax (`experiments/missing_class`).

Of a teacher that was cached few classes are known (`cache = "outputs(top=128)"`, or `"draws()"`): with the student's
logits at these, the sum of all its logits and their normaliser it is the same number, and no more is read.

Config: objective.kd.term = "kd(temperature=4.0)"; objective.kd.weight = 0.9
When: always first: classification or language, whatever the networks are; other losses are judged beside it.
Checked: published code (golden/losses.npz, T = 2 and 4), in value and gradient; by hand; few classes against all.
Experiment: `experiments/gain` (beside the control), `experiments/missing_class` (what T is worth).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.registry import losses
from jaxdistill.core.schedules import Scalar
from jaxdistill.core.types import Array, Signals, SparseLogits, Term
from jaxdistill.losses.term import precise, softened


def kl_divergence(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    temperature: Float[Array, ""] | float = 1.0,
) -> Float[Array, "*batch"]:
    """KL(teacher || student) of softened distributions, without T^2.

    Where the teacher's logit is -inf its probability is 0, and the class adds nothing.
    """
    log_q = jax.nn.log_softmax(precise(student) / temperature)
    log_p = jax.nn.log_softmax(precise(teacher) / temperature)
    p = jnp.exp(log_p)
    # selected BEFORE the product: 0 * (-inf) is NaN, in the value and in its gradient
    return jnp.sum(p * (jnp.where(p > 0, log_p, 0.0) - jnp.where(p > 0, log_q, 0.0)), axis=-1)


def kl_to_sparse(
    student: Float[Array, "*batch classes"], teacher: SparseLogits, temperature: Float[Array, ""] | float = 1.0
) -> Float[Array, "*batch"]:
    """`kl_divergence` from a teacher of which few classes are known, while all others have one logit."""
    logits = precise(student) / temperature
    norm = jax.nn.logsumexp(logits, axis=-1)
    there = teacher.classes < teacher.size
    own = jnp.take_along_axis(logits, jnp.minimum(teacher.classes, teacher.size - 1), axis=-1)
    left = teacher.size - jnp.sum(there, axis=-1)
    known = jnp.where(there, precise(teacher.logits) / temperature, -jnp.inf)
    rest = precise(teacher.rest) / temperature
    total = jnp.logaddexp(jax.nn.logsumexp(known, axis=-1), rest + jnp.log(left))
    log_p, log_rest = known - total[..., None], rest - total
    p, p_rest = jnp.exp(log_p), jnp.exp(log_rest)
    # selected BEFORE the products: 0 * (-inf) is NaN, in the value and in its gradient
    of_few = jnp.sum(p * jnp.where(p > 0, log_p - own + norm[..., None], 0.0), axis=-1)
    others = jnp.sum(logits, axis=-1) - jnp.sum(jnp.where(there, own, 0.0), axis=-1)
    return of_few + p_rest * jnp.where(p_rest > 0, left * (log_rest + norm) - others, 0.0)


@losses.register
def kd(temperature: Scalar = 4.0, scale_t2: bool = True) -> Term:
    """Soft targets of the fused teacher at a temperature.

    Args:
        temperature: number or schedule, positive.
        scale_t2: multiply by T^2, as the paper does.
    """

    def values(signals: Signals) -> Array:
        student, few, at = signals.student.logits, signals.teacher.sparse, signals.temperature
        return kl_divergence(student, signals.teacher.logits, at) if few is None else kl_to_sparse(student, few, at)

    return softened(values, temperature, scale_t2, linear=True)
