"""CA-MKD: weight each teacher by its confidence in the label, row by row.

Zhang, Chen and Wang, Confidence-Aware Multi-Teacher Knowledge Distillation, 2022 (arxiv.org/abs/2201.00007).

    w_k = (1 - softmax_k(CE_k)) / (K - 1),    CE_k the cross-entropy of teacher k with the label

Every row needs a label. No teacher gets a weight above 1 / (K - 1). So for two teachers the right one can dominate, for
three it cannot.

Config: fusion = "confidence()"
When: every row has a label, and teachers are right on different rows.
Checked: against float64 numpy; common tests of fusions.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Integer

from jaxdistill.core.interfaces import Fusion
from jaxdistill.core.registry import fusions
from jaxdistill.core.sums import values_at_labels
from jaxdistill.core.types import Array, Signals
from jaxdistill.fusion.mixture import MixtureSpace, mixture_fusion, present_mask, teacher_logits
from jaxdistill.losses.term import masked_labels, precise


def confidence_weights(
    logits: Float[Array, "teachers *batch classes"],
    labels: Integer[Array, "*batch"],
    is_present: Bool[Array, "teachers ..."],
) -> Float[Array, "teachers ..."]:
    """Compute the weights `1 - softmax_k(CE_k)` of the teachers; CE_k is the cross-entropy of teacher k with the label.

    The softmax is over the teachers that are present for the row (example or token). With K present teachers, these
    weights sum to K - 1. They are NaN where the label is not a class number.

    Args:
        logits: the teachers' logits.
        labels: class numbers.
        is_present: True where the teacher is present for the row, `[teachers, *batch]`. Weights of absent teachers are
            meaningless.
    """
    log_p = jax.nn.log_softmax(precise(logits))
    cross_entropies = -values_at_labels(log_p, jnp.broadcast_to(labels, log_p.shape[:-1]))
    # bound the cross-entropy of a class masked with -inf: the difference of two infinities would be NaN
    return 1 - jax.nn.softmax(jnp.where(is_present, jnp.minimum(cross_entropies, 1e4), -jnp.inf), axis=0)


@fusions.register
def confidence(of: MixtureSpace = "probabilities") -> Fusion:
    """Average the teachers of each row (example or token) with weights `w_k = (1 - softmax_k(CE_k)) / (K - 1)`.

    CE_k is the cross-entropy of teacher k with the label, and K is the number of teachers.

    Args:
        of: the space of the average. "probabilities" gives `sum_k w_k softmax(t_k / T)`, with logits t_k of teacher k
            and temperature T; "logits" gives `sum_k w_k t_k`.
    """

    def weigh(signals: Signals) -> Array:
        is_present = present_mask(signals)
        is_present = is_present | ~jnp.any(is_present, axis=0)  # avoid 0 / 0 where all teachers are absent
        return confidence_weights(teacher_logits(signals), masked_labels(signals), is_present)

    return mixture_fusion(weigh, of)
