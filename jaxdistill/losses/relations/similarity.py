"""Similarity-preserving distillation: inputs that are alike to the teacher shall be alike to the student.

Tung and Mori, Similarity-Preserving Knowledge Distillation, 2019 (arxiv.org/abs/1907.09682).

    1 / n^2 sum_ij (g_ij - G_ij)^2,    g = s s' with each row divided by its length; G likewise of the teacher

n is the rows of the global batch: a Gram matrix of each device's rows alone is another loss. Of a hidden state, the
paper's Gram matrix is that of all positions side by side, not of their mean. The weight is large (3,000 in the
paper), because rows of unit length have entries of about 1 / sqrt(n).

Config: objective.similarity.term = "similarity(layers=(-1, -1))"; objective.similarity.weight = 3000
When: student and teacher differ in width or kind; cheap, and a good companion of soft targets.
Checked: published code (value and gradient, 1e-12 in float64); by hand.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.relations.relations import Layers, compared, gram, pairs_of
from jaxdistill.losses.term import stateless, unit


def gram_difference(
    student: Float[Array, "rows width"], teacher: Float[Array, "rows teacher_width"], pairs: Array
) -> Float[Array, ""]:
    """Squared difference of Gram matrices whose rows have unit length, divided by the sum of `pairs`.

    Args:
        student, teacher: rows that do not count are zeros.
        pairs: `[rows, rows]`, which pairs count, or by how much.
    """
    rows = lambda x: unit(jnp.where(pairs != 0, gram(x) * pairs, 0))
    total = jnp.sum(pairs, dtype=student.dtype)
    return jnp.sum((rows(student) - rows(teacher)) ** 2) / jnp.where(total == 0, 1, total)


@losses.register
def similarity(layers: Layers = None, extent: Literal["flat", "mean"] = "flat", teacher: int = 0) -> Term:
    """Gram matrices of the global batch.

    Args:
        layers: (student layer, teacher layer) whose hidden states are compared; None: embeddings.
        extent: a hidden state's positions side by side ("flat", the paper's), or averaged ("mean"), which suits texts.
        teacher: which teacher.
    """

    def values(signals: Signals) -> Array:
        student, target, counts = compared(signals, layers, teacher, flat=extent == "flat")
        return gram_difference(student, target, pairs_of(counts))

    return stateless(values, local=False, needs=frozenset({"teacher"}))
