"""Relational knowledge distillation: distances and angles between the examples of a batch.

Park, Kim, Lu and Cho, Relational Knowledge Distillation, 2019 (arxiv.org/abs/1904.05068).

    25 mean_ij huber(d_ij / mu - D_ij / M) + 50 mean_ijk huber(a_ijk - A_ijk)

with distances d_ij = ||s_i - s_j||, their mean mu over d > 0, and angles a_ijk = cos of (s_j - s_i, s_k - s_i);
capitals are the teacher's. Both are free of widths, so that no projector is needed.

The means are over all n^2 pairs and n^3 triples, diagonals included, as in the published code; mu is not. That code
counts equal rows as 1e-6 apart; here they are 0 apart, and not in mu.

Angles cost memory of n^3 + n^2 width, n being the rows of the GLOBAL batch: 128 rows make 2 million, 1,024 rows a
billion. With `triplets=N`, N triples are drawn with the step's key instead: the same loss in expectation.

Config: objective.rkd.term = "rkd(distance=25.0, angle=50.0)"
When: the geometry of an embedding matters (retrieval, metric learning), or widths differ and no projector is wanted.
Checked: published code (value and gradient, 1e-12 in float64); by hand; sampled triples against all of them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Integer

from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Term
from jaxdistill.losses.relations.relations import Layers, compared, gram, length, pair_mean, pairs_of, smooth_l1
from jaxdistill.losses.term import unit


def distance_difference(
    student: Float[Array, "rows width"], teacher: Float[Array, "rows teacher_width"], pairs: Array
) -> Float[Array, ""]:
    """Mean Huber loss between distances, each divided by their mean over unequal rows.

    Args:
        student, teacher: rows that do not count are zeros.
        pairs: `[rows, rows]`, which pairs count, or by how much.
    """

    def relative(x: Array) -> Array:
        # from differences: with |x|^2 + |y|^2 - 2 xy, near rows would lose their distance to rounding
        distances = jnp.where(pairs != 0, length(x[:, None] - x[None, :]), 0)
        weights = jnp.where(distances != 0, pairs, 0)  # not `> 0`: a NaN must show
        total = jnp.sum(weights, dtype=x.dtype)
        mean = jnp.sum(weights * distances) / jnp.where(total == 0, 1, total)
        return distances / jnp.where(mean == 0, 1, mean)

    return pair_mean(smooth_l1(relative(student) - relative(teacher)), pairs)


def angle_difference(
    student: Float[Array, "rows width"], teacher: Float[Array, "rows teacher_width"], counts: Bool[Array, " rows"]
) -> Float[Array, ""]:
    """Mean Huber loss between the cosines of the angles at i from j to k, over all triples of rows that count."""

    def cosines(x: Array) -> Array:
        return gram(jnp.where(pairs_of(counts)[..., None], unit(x[None, :] - x[:, None]), 0))

    total = jnp.sum(counts, dtype=student.dtype) ** 3
    return jnp.sum(smooth_l1(cosines(student) - cosines(teacher))) / jnp.maximum(total, 1)


def triplet_difference(
    student: Float[Array, "rows width"],
    teacher: Float[Array, "rows teacher_width"],
    triplets: Integer[Array, "triplets 3"],
) -> Float[Array, ""]:
    """The same over some triples (i, j, k) of row numbers, for memory of `triplets * width`."""

    def cosines(x: Array) -> Array:
        at, one, other = (x[triplets[:, n]] for n in range(3))
        return jnp.sum(unit(one - at) * unit(other - at), axis=-1)

    return jnp.mean(smooth_l1(cosines(student) - cosines(teacher)))


def draw_triplets(key: Array, number: int, counts: Bool[Array, " rows"]) -> Integer[Array, "triplets 3"]:
    """Triples of rows that count, drawn with replacement: their mean is, in expectation, that over all n^3."""
    order = jnp.argsort(~counts)  # stable: rows that count first, as they come
    return order[jax.random.randint(key, (number, 3), 0, jnp.maximum(jnp.sum(counts), 1))]


@losses.register
def rkd(
    distance: float = 25.0, angle: float = 50.0, triplets: int = 0, layers: Layers = None, teacher: int = 0
) -> Term:
    """Distances and angles between the examples of the global batch.

    Args:
        distance, angle: the weights of the two parts; a part of weight 0 is not computed.
        triplets: how many angles are drawn in a step; 0: all.
        layers: (student layer, teacher layer) whose hidden states are compared, averaged over their positions; None:
            embeddings.
        teacher: which teacher.

    Raises:
        ValueError: a weight or `triplets` is negative, or both weights are 0.
    """
    if min(distance, angle, triplets) < 0 or distance == angle == 0:
        given = f"distance={distance}, angle={angle}, triplets={triplets}"
        raise ValueError(f"weights and triplets are 0 or more, and one of the weights is above 0; got {given}")

    def apply(params, state, signals, *, key):
        student, target, counts = compared(signals, layers, teacher)
        total = jnp.zeros((), student.dtype)
        if distance:
            total += distance * distance_difference(student, target, pairs_of(counts))
        if angle and triplets:
            total += angle * triplet_difference(student, target, draw_triplets(key, triplets, counts))
        elif angle:
            total += angle * angle_difference(student, target, counts)
        return total, state

    return Term(lambda key, signals: ({}, {}), apply, local=False, needs=frozenset({"teacher"}))
