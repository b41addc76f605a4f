"""Probabilistic knowledge transfer: which examples are near, as a distribution over the batch.

Passalis and Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, 2018
(arxiv.org/abs/1803.10837).

    mean_ij P_ij log((P_ij + e) / (Q_ij + e)),    P_ij = K_ij / sum_j K_ij,    K_ij = (1 + cos(t_i, t_j)) / 2

P is the teacher's, Q the student's, e = 1e-7. It is a MEAN over all n^2 pairs, as in the published code, not the sum
over j of a divergence: hence the weight of 30,000 that is used with it, which is the config's. An example is its own
neighbour too, and the published code keeps it.

Config: objective.pkt.term = "pkt()"; objective.pkt.weight = 30000
When: an embedding for retrieval. On CIFAR-100, in RepDistiller's table, it is ahead of `rkd` and `similarity` in six of
seven pairs of like networks.
Checked: published code (value and gradient, 1e-12 in float64); by hand. Where it turns NaN into 0, ours stays NaN.
"""

import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Term
from jaxdistill.losses.relations.relations import Layers, compared, gram, length, pair_mean, pairs_of
from jaxdistill.losses.term import stateless

EPSILON = 1e-7


def neighbours(x: Float[Array, "rows width"], counts: Bool[Array, " rows"]) -> Float[Array, "rows rows"]:
    """Each row's distribution over the rows that count; zeros in rows that do not."""
    kernel = (gram(x / (length(x)[:, None] + EPSILON)) + 1) / 2
    kernel = jnp.where(pairs_of(counts), kernel, 0)
    total = jnp.sum(kernel, axis=1, keepdims=True)
    return kernel / jnp.where(total == 0, 1, total)


def neighbour_divergence(
    student: Float[Array, "rows width"], teacher: Float[Array, "rows teacher_width"], counts: Bool[Array, " rows"]
) -> Float[Array, ""]:
    """Mean over all pairs of P log(P / Q); rows that do not count are zeros."""
    p, q = neighbours(teacher, counts), neighbours(student, counts)
    return pair_mean(p * jnp.log((p + EPSILON) / (q + EPSILON)), pairs_of(counts))


@losses.register
def pkt(layers: Layers = None, teacher: int = 0) -> Term:
    """Distributions over the neighbours in the global batch.

    Args:
        layers: (student layer, teacher layer) whose hidden states are compared, averaged over their positions; None:
            embeddings.
        teacher: which teacher.
    """
    values = lambda signals: neighbour_divergence(*compared(signals, layers, teacher))
    return stateless(values, local=False, needs=frozenset({"teacher"}))
