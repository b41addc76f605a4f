"""Transformed teacher matching: only the teacher is softened, the student answers as it will be used.

Zheng and Yang, Knowledge Distillation Based on Transformed Teacher Matching, 2024 (arxiv.org/abs/2402.11148).

    KL(softmax(t / T) || softmax(s)),  weighted: times U = sum_c p_c^(1 / T), with p = softmax(t)

Softened probabilities are powers of the plain ones, p^(1 / T) / U. A student that is softened too may be as sure as it
likes; one that is not is kept from more certainty than the softened teacher has (in the paper, a Renyi entropy beside
`kd`). U, from 1 for a sure teacher to C^(1 - 1 / T) for one that knows nothing, makes the rows count more of which the
teacher is unsure (WTTM). No T^2: the student's gradient does not shrink as T grows. It is least at s = t / T, not at
s = t. Published code has the exponent 1 / T for T.

Config: objective.ttm.term = "ttm(temperature=4.0, weighted=True)"
When: as `kd`, where the student shall be calibrated; the paper finds it better at no further cost.
Checked: against the formulas of the published code in float64 numpy, powers and all; by hand.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.registry import losses
from jaxdistill.core.schedules import Scalar, as_schedule, require_positive
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.logits.kd import kl_divergence
from jaxdistill.losses.term import precise, stateless


def power_sum(teacher: Float[Array, "*batch classes"], temperature: Float[Array, ""] | float) -> Float[Array, "*batch"]:
    """U = sum_c p_c^(1 / T) of unsoftened probabilities."""
    return jnp.sum(jnp.exp(jax.nn.log_softmax(precise(teacher)) / temperature), axis=-1)


@losses.register
def ttm(temperature: Scalar = 4.0, weighted: bool = False) -> Term:
    """The fused teacher at a temperature, matched by the student as it is.

    Args:
        temperature: of the teacher, number or schedule, positive.
        weighted: multiply each row by U.
    """
    schedule = require_positive("temperature", as_schedule(temperature))

    def values(signals: Signals) -> Array:
        teacher = precise(signals.teacher.logits)
        divergence = kl_divergence(signals.student.logits, teacher / signals.temperature)
        return divergence * power_sum(teacher, signals.temperature) if weighted else divergence

    return stateless(values, needs=frozenset({"teacher"}), temperature=schedule)
