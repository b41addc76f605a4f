"""Correlation congruence (CCKD): match a Gaussian kernel between the examples of a batch.

Peng et al., Correlation Congruence for Knowledge Distillation, 2019 (arxiv.org/abs/1904.01802).

    mean_ij (c_ij - C_ij)^2,    c_ij = exp(-gamma |s_i - s_j|^2)
                                     = exp(-2 gamma) sum_p (2 gamma)^p / p! (s_i . s_j)^p, cut after p = order

s_i is the student's embedding of example i, scaled to unit length; C is the same kernel of the teacher's embeddings.
The constant (p = 0) cancels. With the usual gamma = 0.4 and order 2 the values are small, so the weight is in the
hundreds.

The paper samples its batches class by class; in a batch without two examples of one class there are few correlations to
learn from. RepDistiller's CC is another loss, mean_i |s_i - t_i| . |s_i+1 - t_i+1|, which depends on the order of the
batch.

Config: objective.cc.term = "cc(gamma=0.4, order=2)"
When: student and teacher differ in width or architecture, as for `similarity`, but near pairs should weigh more.
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


def gaussian_kernel(x: Float[Array, "rows width"], gamma: float, order: int) -> Float[Array, "rows rows"]:
    """Compute the Gaussian kernel K_ij = exp(-gamma |u_i - u_j|^2) of all pairs of rows of `x`, with u_i = x_i / |x_i|.

    As in the paper, the kernel is a power series in the cosine u_i . u_j, truncated after the power `order`.
    """
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
    """Compute mean_ij (K_ij - L_ij)^2 for the Gaussian kernels K of the student and L of the teacher.

    The kernel of embeddings x is K_ij = exp(-gamma |u_i - u_j|^2), with u_i = x_i / |x_i|, as a power series. The mean
    is over all pairs of valid rows; a row is the embedding of one example.

    Args:
        student, teacher: the embedding of each example.
        valid: False for padding.
        gamma: scale of the kernel.
        order: the highest power of u_i . u_j in the power series.
    """
    difference = gaussian_kernel(student, gamma, order) - gaussian_kernel(teacher, gamma, order)
    return pair_mean(difference**2, valid_pairs(valid))


@losses.register
def cc(gamma: float = 0.4, order: int = 2, layers: LayerPair = None, teacher: int = 0) -> Term:
    """Build the correlation congruence (CC) loss term mean_ij (K_ij - L_ij)^2, for Gaussian kernels K and L.

    K_ij = exp(-gamma |u_i - u_j|^2), computed as a power series, with u_i = x_i / |x_i| for the student's embeddings x.
    L is the same for the teacher. i and j are the examples of the global batch.

    Args:
        gamma: scale of the kernel, above 0.
        order: the highest power of u_i . u_j in the power series, from 1 to 100.
        layers: pair (student layer, teacher layer) whose hidden states are compared, each averaged over its positions
            (tokens or pixels); negative numbers count from the end; None compares the models' embeddings.
        teacher: index of the teacher, in the order of the config.

    Raises:
        ValueError: `gamma` or `order` is out of range.
    """
    if gamma <= 0 or not 1 <= order <= 100:
        raise ValueError(f"gamma must be above 0 and order from 1 to 100; got gamma={gamma}, order={order}")

    def values(signals: Signals) -> Array:
        return correlation_difference(*gather_representations(signals, layers, teacher), gamma, order)

    return stateless(values, local=False, needs=frozenset({"teacher"}))
