"""Knowledge distillation with soft targets: KL divergence between softened teacher and student distributions.

Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015 (arxiv.org/abs/1503.02531). With the
teacher's logits t, the student's logits s and the temperature T:

    T^2 KL(softmax(t / T) || softmax(s / T))

T^2 keeps the size of the gradient when T changes. The student learns more about classes that it never sees as T grows,
up to about 4. Trained without one of ten digits, it recognises 24 % of this digit's images at T = 1, 43 % at T = 2,
54 % at T = 4 and 55 % at T = 8, and 9 % if it learns from the teacher's argmax (`experiments/missing_class`).

The outputs of a cached teacher are computed before the run. The cache may store only a few classes
(`cache = "outputs(top=128)"`, or `"draws()"`). The loss then needs only the student's logits at these classes, the sum
of all its logits and their normaliser, and gives the same number.

Config: objective.kd.term = "kd(temperature=4.0)"; objective.kd.weight = 0.9
Mean: over tokens (`reduction="token"`), as in MiniLLM (LMOps 4f2a9de, minillm/finetune.py, line 174), DistiLLM
(d47e77f, distillm/losses.py, line 11) and DSKD (077337a, code/criterions/various_divergence.py, lines 85 and 107).
When: always first, for classification and language, with any two networks. Compare other losses with it.
Checked: against published code (golden/losses.npz, T = 2 and 4), in value and gradient; by hand; sparse against dense
teacher logits.
Experiment: `experiments/gain` (against the control), `experiments/missing_class` (the effect of T).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.schedules import Scalar
from jaxdistill.core.softmax import has_many_classes, sum_over_classes
from jaxdistill.core.types import Array, Signals, SparseLogits
from jaxdistill.losses.logits.temperature import softened
from jaxdistill.losses.term import precise


def kl_divergence(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    temperature: Float[Array, ""] | float = 1.0,
) -> Float[Array, "*batch"]:
    """Compute KL(softmax(teacher / T) || softmax(student / T)) over the classes, without the factor T^2.

    A class whose teacher logit is -inf has probability 0 and adds nothing.
    """
    if has_many_classes(student):
        return sum_over_classes(_kl_of_class, precise(teacher), precise(student), temperature)
    log_q = jax.nn.log_softmax(precise(student) / temperature)
    log_p = jax.nn.log_softmax(precise(teacher) / temperature)
    p = jnp.exp(log_p)
    # select BEFORE the product: 0 * (-inf) is NaN, in the value and in its gradient
    return jnp.sum(p * (jnp.where(p > 0, log_p, 0.0) - jnp.where(p > 0, log_q, 0.0)), axis=-1)


def _kl_of_class(p: Array, q: Array, log_p: Array, log_q: Array) -> Array:
    masked = log_p < math.log(jnp.finfo(log_p.dtype).tiny)  # False for a NaN, which is not hidden
    # Select BEFORE the product, as 0 * (-inf) is NaN, in the value and in its gradient. The second selection is for
    # XLA, which on CPUs would write p and the difference to memory, each alone, before it sums their product.
    return jnp.where(masked, 0.0, p * jnp.where(masked, 0.0, log_p - log_q))


def kl_to_sparse(
    student: Float[Array, "*batch classes"], teacher: SparseLogits, temperature: Float[Array, ""] | float = 1.0
) -> Float[Array, "*batch"]:
    """Compute KL(softmax(teacher / T) || softmax(student / T)) from sparse teacher logits, without the factor T^2.

    Sparse logits are the logits of a few classes, and one logit that all other classes c share. With their teacher
    probability p_rest and the student's probabilities q_c, the other classes add p_rest sum_c (log p_rest - log q_c).
    This needs only the number of these classes and the sum of the student's logits over them.
    """
    logits = precise(student) / temperature
    norm = jax.nn.logsumexp(logits, axis=-1)
    stored = teacher.classes < teacher.size  # [*batch, few]; False where a slot is empty
    stored_logits = jnp.take_along_axis(logits, jnp.minimum(teacher.classes, teacher.size - 1), axis=-1)
    rest_count = teacher.size - jnp.sum(stored, axis=-1)
    teacher_logits = jnp.where(stored, precise(teacher.logits) / temperature, -jnp.inf)
    teacher_rest = precise(teacher.rest) / temperature
    teacher_norm = jnp.logaddexp(jax.nn.logsumexp(teacher_logits, axis=-1), teacher_rest + jnp.log(rest_count))
    log_p, log_p_rest = teacher_logits - teacher_norm[..., None], teacher_rest - teacher_norm
    p, p_rest = jnp.exp(log_p), jnp.exp(log_p_rest)
    # select BEFORE the products: 0 * (-inf) is NaN, in the value and in its gradient
    stored_sum = jnp.sum(p * jnp.where(p > 0, log_p - stored_logits + norm[..., None], 0.0), axis=-1)
    rest_logits = jnp.sum(logits, axis=-1) - jnp.sum(jnp.where(stored, stored_logits, 0.0), axis=-1)
    return stored_sum + p_rest * jnp.where(p_rest > 0, rest_count * (log_p_rest + norm) - rest_logits, 0.0)


@losses.register
def kd(temperature: Scalar = 4.0, scale_t2: bool = True) -> Term:
    """Build the soft-target (Hinton) loss term T^2 KL(softmax(t / T) || softmax(s / T)), per example or token.

    t and s are the teacher's and the student's logits. Several teachers are first combined into one by the config's
    fusion, such as `average()`.

    Args:
        temperature: T, a positive number or a schedule over the training steps.
        scale_t2: multiply the loss by T^2, so that its gradient keeps its size when T changes, as in the paper.
    """

    def values(signals: Signals) -> Array:
        student, sparse = signals.student.logits, signals.teacher.sparse
        if sparse is not None:
            return kl_to_sparse(student, sparse, signals.temperature)
        return kl_divergence(student, signals.teacher.logits, signals.temperature)

    return softened(values, temperature, scale_t2, linear=True)
