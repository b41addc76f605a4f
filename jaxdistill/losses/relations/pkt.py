"""Probabilistic knowledge transfer (PKT): match each example's distribution of similarities over the batch.

Passalis and Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, 2018
(arxiv.org/abs/1803.10837).

    mean_ij P_ij log((P_ij + e) / (Q_ij + e)),    P_ij = K_ij / sum_j K_ij,    K_ij = (1 + cos(t_i, t_j)) / 2

P is computed from the teacher's embeddings t_i of the examples i, Q likewise from the student's; e = 1e-7. The loss is
a MEAN over all n^2 pairs, as in the published code, not the sum over j of a divergence. Hence the usual weight of
30,000, which the config below has. Each example is also its own neighbour, as in the published code.

Config: objective.pkt.term = "pkt()"; objective.pkt.weight = 30000
When: an embedding for retrieval. In RepDistiller's table for CIFAR-100 it beats `rkd` and `similarity` in six of seven
pairs with similar architectures.
Checked: value and gradient equal those of the published code (1e-12 in float64); by hand. The published code turns NaN
into 0; here NaN stays NaN.
"""

import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array
from jaxdistill.losses.relations.relations import (
    LayerPair,
    gather_representations,
    gram,
    pair_mean,
    safe_norm,
    valid_pairs,
)
from jaxdistill.losses.term import stateless

EPSILON = 1e-7


def neighbour_distributions(x: Float[Array, "rows width"], valid: Bool[Array, " rows"]) -> Float[Array, "rows rows"]:
    """Compute, for each row i of `x`, the distribution P_ij = K_ij / sum_j K_ij over the valid rows j.

    K_ij = (1 + cos(x_i, x_j)) / 2. A row is the embedding of one example. P_ij is 0 if row i or j is not valid.
    """
    kernel = (gram(x / (safe_norm(x)[:, None] + EPSILON)) + 1) / 2
    kernel = jnp.where(valid_pairs(valid), kernel, 0)
    total = jnp.sum(kernel, axis=1, keepdims=True)
    return kernel / jnp.where(total == 0, 1, total)


def neighbour_divergence(
    student: Float[Array, "rows width"], teacher: Float[Array, "rows teacher_width"], valid: Bool[Array, " rows"]
) -> Float[Array, ""]:
    """Compute mean_ij P_ij log((P_ij + e) / (Q_ij + e)) over all pairs of valid rows, with e = 1e-7.

    P_ij = K_ij / sum_j K_ij with K_ij = (1 + cos(t_i, t_j)) / 2 for the teacher's rows t; Q_ij is the same for the
    student's rows. A row is the embedding of one example; rows that are not valid must be zeros.
    """
    p, q = neighbour_distributions(teacher, valid), neighbour_distributions(student, valid)
    return pair_mean(p * jnp.log((p + EPSILON) / (q + EPSILON)), valid_pairs(valid))


@losses.register
def pkt(layers: LayerPair = None, teacher: int = 0) -> Term:
    """Build the probabilistic knowledge transfer (PKT) loss term mean_ij P_ij log((P_ij + e) / (Q_ij + e)).

    P_ij = K_ij / sum_j K_ij, with K_ij = (1 + cos(t_i, t_j)) / 2 for the teacher's embeddings t. Q_ij is the same for
    the student's embeddings, and e = 1e-7. i and j are the examples of the global batch.

    Args:
        layers: pair (student layer, teacher layer) whose hidden states are compared, each averaged over its positions
            (tokens or pixels); negative numbers count from the end; None compares the models' embeddings.
        teacher: index of the teacher, in the order of the config.
    """
    values = lambda signals: neighbour_divergence(*gather_representations(signals, layers, teacher))
    return stateless(values, local=False, needs=frozenset({"teacher"}))
