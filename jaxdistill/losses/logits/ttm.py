"""Transformed teacher matching (TTM): only the teacher is softened, the student is not.

Zheng and Yang, Knowledge Distillation Based on Transformed Teacher Matching, 2024 (arxiv.org/abs/2402.11148). With the
teacher's logits t and the student's logits s:

    KL(softmax(t / T) || softmax(s)),  weighted: times U = sum_c p_c^(1 / T), with p = softmax(t)

Softened probabilities are powers of the unsoftened ones, p^(1 / T) / U. A student that is softened too, as in `kd`, may
be as confident as it likes before the softening. An unsoftened student is kept from more confidence than the softened
teacher has; the paper derives this as `kd` with a Renyi entropy as a regulariser. The weighted form (WTTM) multiplies
each example's loss by U. For T > 1, U lies between 1 for a certain teacher and C^(1 - 1 / T) for one that is uniform
over C classes, so that examples count more on which the teacher is unsure.

There is no T^2: the student's gradient does not shrink as T grows. The minimum is at s = t / T, not at s = t. The
published code takes the exponent 1 / T as its argument in place of T.

Config: objective.ttm.term = "ttm(temperature=4.0, weighted=True)"
When: in place of `kd`, if the student must be calibrated. The paper finds it better than `kd` at the same cost.
Checked: against the formulas of the published code in float64 numpy, including the powers; by hand.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.schedules import Scalar, as_schedule, require_positive
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.logits.kd import kl_divergence
from jaxdistill.losses.term import precise, stateless


def power_sum(teacher: Float[Array, "*batch classes"], temperature: Float[Array, ""] | float) -> Float[Array, "*batch"]:
    """Compute U = sum_c p_c^(1 / T) over the classes c, with p = softmax(teacher).

    For T > 1, U is 1 if one class has probability 1, and grows as the teacher becomes less certain.
    """
    return jnp.sum(jnp.exp(jax.nn.log_softmax(precise(teacher)) / temperature), axis=-1)


@losses.register
def ttm(temperature: Scalar = 4.0, weighted: bool = False) -> Term:
    """Build the transformed teacher matching (TTM) loss term KL(softmax(t / T) || softmax(s)), per example or token.

    t and s are the teacher's and the student's logits. Only the teacher's are divided by T. Several teachers are first
    combined into one by the config's fusion, such as `average()`.

    Args:
        temperature: T, a positive number or a schedule over the training steps.
        weighted: multiply the loss of each example by U = sum_c p_c^(1 / T), with p = softmax(t). For T > 1, U
            grows as the teacher becomes less certain.
    """
    schedule = require_positive("temperature", as_schedule(temperature))

    def values(signals: Signals) -> Array:
        teacher = precise(signals.teacher.logits)
        divergence = kl_divergence(signals.student.logits, teacher / signals.temperature)
        return divergence * power_sum(teacher, signals.temperature) if weighted else divergence

    return stateless(values, needs=frozenset({"teacher"}), temperature=schedule)
