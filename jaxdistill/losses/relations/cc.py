"""Correlation congruence: a Gaussian kernel between the examples of a batch, the same for student and teacher.

Peng et al., Correlation Congruence for Knowledge Distillation, 2019 (arxiv.org/abs/1904.01802).

    mean_ij (c_ij - C_ij)^2,    c_ij = exp(-gamma |s_i - s_j|^2)
                                     = exp(-2 gamma) sum_p (2 gamma)^p / p! (s_i . s_j)^p, cut after p = order

for rows of unit length; C is the teacher's. The constant (p = 0) cancels. With the usual gamma = 0.4 and order 2 the
values are small: the weight is in the hundreds.

The paper draws its batches class by class; in a batch without two of a class there is little to be congruent with.
RepDistiller's CC is another loss, mean_i |s_i - t_i| . |s_i+1 - t_i+1|, which depends on the order of the batch.

Config: objective.cc.term = "cc(gamma=0.4, order=2)"
When: as `similarity`, with a kernel that weighs near pairs more.
Checked: the code of Knowledge-Distillation-Zoo (value and gradient, 1e-12 in float64); against the Gaussian.
"""

import math

from jaxtyping import Bool, Float

from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.relations.relations import Layers, compared, gram, pair_mean, pairs_of
from jaxdistill.losses.term import stateless, unit


def correlation(x: Float[Array, "rows width"], gamma: float, order: int) -> Float[Array, "rows rows"]:
    """The Gaussian kernel between rows, brought to unit length, by its series up to a power of their cosine."""
    cosine = gram(unit(x))
    powers = [(2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * sum(powers[1:], start=powers[0])


def correlation_difference(
    student: Float[Array, "rows width"],
    teacher: Float[Array, "rows teacher_width"],
    counts: Bool[Array, " rows"],
    gamma: float,
    order: int,
) -> Float[Array, ""]:
    """Mean squared difference of the kernels over all pairs of rows that count."""
    difference = correlation(student, gamma, order) - correlation(teacher, gamma, order)
    return pair_mean(difference**2, pairs_of(counts))


@losses.register
def cc(gamma: float = 0.4, order: int = 2, layers: Layers = None, teacher: int = 0) -> Term:
    """Congruent correlations of the global batch.

    Args:
        gamma: of the Gaussian kernel, above 0.
        order: the highest power of its series, 1 or more.
        layers: (student layer, teacher layer) whose hidden states are compared, averaged over their positions; None:
            embeddings.
        teacher: which teacher.

    Raises:
        ValueError: `gamma` or `order` is out of range.
    """
    if gamma <= 0 or order < 1:
        raise ValueError(f"gamma is above 0 and order 1 or more; got gamma={gamma}, order={order}")

    def values(signals: Signals) -> Array:
        return correlation_difference(*compared(signals, layers, teacher), gamma, order)

    return stateless(values, local=False, needs=frozenset({"teacher"}))
