"""Teachers weigh by how well they name the label, row by row: Zhang, Chen and Wang, CA-MKD, 2022.

Confidence-Aware Multi-Teacher Knowledge Distillation (arxiv.org/abs/2201.00007).

    w_k = (1 - softmax_k(CE_k)) / (K - 1),    CE_k the cross-entropy of teacher k with the label

It needs the label of every row it weighs, and no teacher ever weighs more than 1 / (K - 1): of two unlike teachers the
right one rules, of three it cannot.

Config: fusion = "confidence()"
When: every row has a label, and teachers are right on unlike rows.
Checked: against float64 numpy; by law.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Integer

from jaxdistill.core.registry import fusions
from jaxdistill.core.sums import of_label
from jaxdistill.core.types import Array, Fusion, Signals
from jaxdistill.fusion.mixture import Of, mixing, present, spoken
from jaxdistill.losses.term import labels_of, precise


def confidence_weights(
    logits: Float[Array, "teachers *batch classes"],
    labels: Integer[Array, "*batch"],
    there: Bool[Array, "teachers ..."],
) -> Float[Array, "teachers ..."]:
    """`1 - softmax_k(CE_k)` over the K teachers that are there; theirs sum to K - 1.

    NaN for a label that is no class.
    """
    log_p = jax.nn.log_softmax(precise(logits))
    surprise = -of_label(log_p, jnp.broadcast_to(labels, log_p.shape[:-1]))
    # a class masked with -inf is as wrong as can be; the difference of two infinities would be NaN
    return 1 - jax.nn.softmax(jnp.where(there, jnp.minimum(surprise, 1e4), -jnp.inf), axis=0)


@fusions.register
def confidence(of: Of = "probabilities") -> Fusion:
    """Teachers weighted by the probability that they give to the label.

    Args:
        of: whether "probabilities" or "logits" are mixed.
    """

    def weigh(signals: Signals) -> Array:
        there = present(signals)
        there = there | ~jnp.any(there, axis=0)  # where nobody is, nothing is weighed, and nothing divided by 0
        return confidence_weights(spoken(signals), labels_of(signals), there)

    return mixing(weigh, of)
