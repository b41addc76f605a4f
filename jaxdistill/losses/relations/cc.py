"""Correlation congruence (CCKD): match a Gaussian kernel between the examples of a batch.

Peng et al., Correlation Congruence for Knowledge Distillation, 2019 (arxiv.org/abs/1904.01802).

    mean_ij (c_ij - C_ij)^2,    c_ij = exp(-gamma |s_i - s_j|^2)
                                     = exp(-2 gamma) sum_p (2 gamma)^p / p! (s_i . s_j)^p, cut after p = order

for rows of unit length; C is the teacher's kernel. The constant (p = 0) cancels. With the usual gamma = 0.4 and order 2
the values are small, so the weight is in the hundreds.

The paper samples its batches class by class; in a batch without two examples of one class there are few correlations to
learn from. RepDistiller's CC is another loss, mean_i |s_i - t_i| . |s_i+1 - t_i+1|, which depends on the order of the
batch.

Config: objective.cc.term = "cc(gamma=0.4, order=2)"
When: as for `similarity`, but with a kernel that weights near pairs more.
Checked: value and gradient equal those of Knowledge-Distillation-Zoo (1e-12 in float64); the series against the
Gaussian.
"""

import math

from jaxtyping import Bool, Float

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.relations.relations import LayerPair, gather_representations, gram, pair_mean, valid_pairs
from jaxdistill.losses.term import stateless, unit


def correlation(x: Float[Array, "rows width"], gamma: float, order: int) -> Float[Array, "rows rows"]:
    """Compute the Gaussian kernel between rows of unit length, by its power series in their cosine."""
    cosine = gram(unit(x))
    powers = [(2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * sum(powers[1:], start=powers[0])


def correlation_difference(
    student: Float[Array, "rows width"],
    teacher: Float[Array, "rows teacher_width"],
    valid: Bool[Array, " rows"],
    gamma: float,
    order: int,
) -> Float[Array, ""]:
    """Compute the mean squared difference of the kernels over all pairs of valid rows."""
    difference = correlation(student, gamma, order) - correlation(teacher, gamma, order)
    return pair_mean(difference**2, valid_pairs(valid))


@losses.register
def cc(gamma: float = 0.4, order: int = 2, layers: LayerPair = None, teacher: int = 0) -> Term:
    """Compare the correlations of the global batch.

    Args:
        gamma: of the Gaussian kernel, above 0.
        order: the highest power of the series, 1 or more.
        layers: (student layer, teacher layer) whose hidden states, averaged over their positions, are compared; None:
            embeddings.
        teacher: index of the teacher.

    Raises:
        ValueError: `gamma` or `order` is out of range.
    """
    if gamma <= 0 or order < 1:
        raise ValueError(f"gamma must be above 0 and order 1 or more; got gamma={gamma}, order={order}")

    def values(signals: Signals) -> Array:
        return correlation_difference(*gather_representations(signals, layers, teacher), gamma, order)

    return stateless(values, local=False, needs=frozenset({"teacher"}))
