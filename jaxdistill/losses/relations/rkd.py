"""Relational knowledge distillation (RKD): match distances and angles between the examples of a batch.

Park, Kim, Lu and Cho, Relational Knowledge Distillation, 2019 (arxiv.org/abs/1904.05068).

    25 mean_ij huber(d_ij / mu - D_ij / M) + 50 mean_ijk huber(a_ijk - A_ijk)

s_i is the student's embedding of example i. d_ij = ||s_i - s_j|| are distances, mu is their mean over d > 0, and
a_ijk = cos of (s_j - s_i, s_k - s_i) are angles; capitals are the teacher's. Distances and angles do not depend on
widths, so no projector is needed.

The means are over all n^2 pairs and n^3 triples, diagonals included, as in the published code; mu excludes equal rows.
The published code gives equal rows a distance of 1e-6; here it is 0, and does not enter mu.

Angles need memory for n^3 + n^2 width numbers, where n is the number of examples of the GLOBAL batch: 128 have 2
million triples, 1,024 a billion. With `triplets=N`, each step draws N triples at random instead; the loss is the same
in expectation.

Config: objective.rkd.term = "rkd(distance=25.0, angle=50.0)"
When: the geometry of an embedding matters (retrieval, metric learning), or widths differ and no projector is wanted.
Checked: value and gradient equal those of the published code (1e-12 in float64); by hand; sampled triples against all
triples.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Integer

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Key, Params, Signals, State
from jaxdistill.losses.relations.relations import (
    LayerPair,
    gather_representations,
    gram,
    pair_mean,
    safe_norm,
    smooth_l1,
    valid_pairs,
)
from jaxdistill.losses.term import unit


def distance_difference(
    student: Float[Array, "rows width"], teacher: Float[Array, "rows teacher_width"], pairs: Array
) -> Float[Array, ""]:
    """Compute mean_ij huber(d_ij - D_ij) over pairs of rows, for distances d of the student and D of the teacher.

    A row is the embedding of one example. d_ij is the Euclidean distance of rows i and j of the student, divided by the
    mean distance of all pairs of unequal rows; D_ij is the same for the teacher. All means are weighted by `pairs`.

    Args:
        student, teacher: the embeddings; masked rows must be zeros.
        pairs: `[rows, rows]`, the weight of each pair, or True for pairs that count.
    """

    def relative_distances(x: Array) -> Array:
        # from differences: with |x|^2 + |y|^2 - 2 xy, near rows would lose their distance to rounding
        distances = jnp.where(pairs != 0, safe_norm(x[:, None] - x[None, :]), 0)
        weights = jnp.where(distances != 0, pairs, 0)  # not `> 0`, which would hide a NaN
        total = jnp.sum(weights, dtype=x.dtype)
        mean = jnp.sum(weights * distances) / jnp.where(total == 0, 1, total)
        return distances / jnp.where(mean == 0, 1, mean)

    return pair_mean(smooth_l1(relative_distances(student) - relative_distances(teacher)), pairs)


def angle_difference(
    student: Float[Array, "rows width"], teacher: Float[Array, "rows teacher_width"], valid: Bool[Array, " rows"]
) -> Float[Array, ""]:
    """Compute the mean of huber(a - A) over all triples of valid rows, for the student's angles a and the teacher's A.

    A row is the embedding of one example. The angle of a triple (i, j, k) is cos(x_j - x_i, x_k - x_i), for the rows x
    of one model.
    """

    def cosines(x: Array) -> Array:
        return gram(jnp.where(valid_pairs(valid)[..., None], unit(x[None, :] - x[:, None]), 0))

    total = jnp.sum(valid, dtype=student.dtype) ** 3
    return jnp.sum(smooth_l1(cosines(student) - cosines(teacher))) / jnp.maximum(total, 1)


def triplet_difference(
    student: Float[Array, "rows width"],
    teacher: Float[Array, "rows teacher_width"],
    triplets: Integer[Array, "triplets 3"],
) -> Float[Array, ""]:
    """Compute the mean of huber(a - A) over given triples of rows, for the student's angles a and the teacher's A.

    A row is the embedding of one example. The angle of a triple (i, j, k) is cos(x_j - x_i, x_k - x_i), for the rows x
    of one model.

    Args:
        student, teacher: the embeddings.
        triplets: the row numbers i, j, k of each triple.
    """

    def cosines(x: Array) -> Array:
        i, j, k = (x[triplets[:, n]] for n in range(3))
        return jnp.sum(unit(j - i) * unit(k - i), axis=-1)

    return jnp.mean(smooth_l1(cosines(student) - cosines(teacher)))


def draw_triplets(key: Array, number: int, valid: Bool[Array, " rows"]) -> Integer[Array, "triplets 3"]:
    """Draw triples of the numbers of valid rows, uniformly and with replacement.

    The mean of a value over the drawn triples is an unbiased estimate of its mean over all n^3 triples of n valid rows.

    Args:
        key: PRNG key.
        number: number of triples to draw.
        valid: True for rows that may be drawn.
    """
    order = jnp.argsort(~valid)  # stable: valid rows first, in their order
    return order[jax.random.randint(key, (number, 3), 0, jnp.maximum(jnp.sum(valid), 1))]


@losses.register
def rkd(
    distance: float = 25.0, angle: float = 50.0, triplets: int = 0, layers: LayerPair = None, teacher: int = 0
) -> Term:
    """Build the RKD loss term: distance * mean_ij huber(d_ij - D_ij) + angle * mean_ijk huber(a_ijk - A_ijk).

    i, j and k are the examples of the global batch, with the student's embeddings s. d_ij = |s_i - s_j|, divided by the
    mean distance, and a_ijk = cos(s_j - s_i, s_k - s_i). D and A are the same for the teacher.

    Args:
        distance: weight of the distances; 0 skips their computation.
        angle: weight of the angles; 0 skips their computation.
        triplets: number of triples (i, j, k) that are drawn in each step; 0 uses all n^3 triples of n examples.
        layers: pair (student layer, teacher layer) whose hidden states are compared, each averaged over its positions
            (tokens or pixels); negative numbers count from the end; None compares the models' embeddings.
        teacher: index of the teacher, in the order of the config.

    Raises:
        ValueError: a weight or `triplets` is negative, or both weights are 0.
    """
    if triplets > 2**24:
        raise ValueError(f"triplets={triplets} is too large; give at most 2^24, or 0 for all triples of the batch")
    if min(distance, angle, triplets) < 0 or distance == angle == 0:
        arguments = f"distance={distance}, angle={angle}, triplets={triplets}"
        raise ValueError(f"distance, angle and triplets must be 0 or more, and not both weights 0; got {arguments}")

    def apply(params: Params, state: State, signals: Signals, *, key: Key) -> tuple[Float[Array, ""], State]:
        student, target, valid = gather_representations(signals, layers, teacher)
        total = jnp.zeros((), student.dtype)
        if distance:
            total += distance * distance_difference(student, target, valid_pairs(valid))
        if angle and triplets:
            total += angle * triplet_difference(student, target, draw_triplets(key, triplets, valid))
        elif angle:
            total += angle * angle_difference(student, target, valid)
        return total, state

    return Term(lambda key, signals: ({}, {}), apply, local=False, needs=frozenset({"teacher"}))
