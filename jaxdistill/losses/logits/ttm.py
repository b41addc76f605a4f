"""Transformed teacher matching (TTM): only the teacher is softened, the student is not.

Zheng and Yang, Knowledge Distillation Based on Transformed Teacher Matching, 2024 (arxiv.org/abs/2402.11148).

    KL(softmax(t / T) || softmax(s)),  weighted: times U = sum_c p_c^(1 / T), with p = softmax(t)

Softened probabilities are powers of the unsoftened ones, p^(1 / T) / U. A student that is softened too may be as
confident as it likes. An unsoftened student is kept from more confidence than the softened teacher has; in the paper
this is a Renyi entropy beside `kd`. The weighted form (WTTM) multiplies each row by U, from 1 for a certain teacher to
C^(1 - 1 / T) for a uniform one, so that rows count more on which the teacher is unsure.

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
    """Compute U = sum_c p_c^(1 / T) of unsoftened probabilities, from the teacher's logits."""
    return jnp.sum(jnp.exp(jax.nn.log_softmax(precise(teacher)) / temperature), axis=-1)


@losses.register
def ttm(temperature: Scalar = 4.0, weighted: bool = False) -> Term:
    """Compute KL(softened fused teacher || unsoftened student).

    Args:
        temperature: of the teacher; number or schedule, positive.
        weighted: multiply each row by U.
    """
    schedule = require_positive("temperature", as_schedule(temperature))

    def values(signals: Signals) -> Array:
        teacher = precise(signals.teacher.logits)
        divergence = kl_divergence(signals.student.logits, teacher / signals.temperature)
        return divergence * power_sum(teacher, signals.temperature) if weighted else divergence

    return stateless(values, needs=frozenset({"teacher"}), temperature=schedule)
