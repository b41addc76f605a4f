"""Similarity-preserving distillation (SP): match the pairwise similarities of the examples in a batch.

Tung and Mori, Similarity-Preserving Knowledge Distillation, 2019 (arxiv.org/abs/1907.09682).

    1 / n^2 sum_ij (g_ij - G_ij)^2,    g = s s' with each row divided by its norm; G likewise for the teacher

s are the student's embeddings or hidden states, one row for each example. n is the number of examples of the global
batch; Gram matrices of each device's examples alone would be another loss. For a hidden state, the paper flattens all
positions before the product and does not average over them. The weight is large (3,000 in the paper), because the
entries of unit rows are about 1 / sqrt(n).

Config: objective.similarity.term = "similarity(layers=(-1, -1))"; objective.similarity.weight = 3000
When: student and teacher differ in width or architecture; cheap, and works well together with soft targets.
Checked: value and gradient equal those of the published code (1e-12 in float64); by hand.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.relations.relations import LayerPair, gather_representations, gram, valid_pairs
from jaxdistill.losses.term import stateless, unit


def gram_difference(
    student: Float[Array, "rows width"], teacher: Float[Array, "rows teacher_width"], pairs: Array
) -> Float[Array, ""]:
    """Compute sum_ij (g_ij - G_ij)^2 / sum_ij w_ij, for weights w = `pairs` and Gram matrices g and G.

    g is the matrix w_ij s_i . s_j of the student's rows s, with each row of the matrix divided by its norm. G is the
    same for the teacher.

    Args:
        student, teacher: one row for each example; masked rows must be zeros.
        pairs: `[rows, rows]`, the weight of each pair, or True for pairs that count.
    """
    unit_gram = lambda x: unit(jnp.where(pairs != 0, gram(x) * pairs, 0))
    total = jnp.sum(pairs, dtype=student.dtype)
    return jnp.sum((unit_gram(student) - unit_gram(teacher)) ** 2) / jnp.where(total == 0, 1, total)


@losses.register
def similarity(layers: LayerPair = None, extent: Literal["flat", "mean"] = "flat", teacher: int = 0) -> Term:
    """Build the similarity-preserving (SP) loss term mean_ij (g_ij - G_ij)^2, for pairwise similarities g and G.

    g is the Gram matrix s_i . s_j of the examples of the global batch, with each row divided by its norm; s_i is the
    student's hidden state or embedding of example i. G is the same for the teacher.

    Args:
        layers: pair (student layer, teacher layer) whose hidden states are compared; negative numbers count from the
            end; None compares the models' embeddings.
        extent: flatten the positions (tokens or pixels) of a hidden state ("flat", as in the paper), or average over
            the positions ("mean"), which suits texts.
        teacher: index of the teacher, in the order of the config.
    """

    def values(signals: Signals) -> Array:
        student, target, valid = gather_representations(signals, layers, teacher, flat=extent == "flat")
        return gram_difference(student, target, valid_pairs(valid))

    return stateless(values, local=False, needs=frozenset({"teacher"}))
