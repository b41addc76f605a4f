"""Surer teachers weigh more, row by row: Kwon et al., Adaptive Knowledge Distillation Based on Entropy, 2020.

ieeexplore.ieee.org/document/9054698; the form of Zhang et al. 2022 (arxiv.org/abs/2201.00007), who compare with it:

    w_k = (1 - H_k / sum_j H_j) / (K - 1),    H_k the entropy of teacher k

It needs no labels, and no teacher ever weighs more than 1 / (K - 1). A teacher that is sure and wrong is believed: a
student of digits has 89.4 % from a good teacher alone, and 4.7 % beside two more that agree on a wrong answer
(`python -m experiments.routing --worlds agreeing`).

Config: fusion = "entropy()"
When: no labels, and teachers that know what they do not know, such as specialists of some classes.
Checked: against float64 numpy; by law.
"""

import jax.numpy as jnp

from jaxdistill.core.registry import fusions
from jaxdistill.core.types import Array, Fusion, Signals
from jaxdistill.fusion.mixture import Of, mixing, present, spoken
from jaxdistill.losses.task import cross_entropy


@fusions.register
def entropy(of: Of = "probabilities") -> Fusion:
    """Teachers weighted by how sure they are.

    The entropies are those at temperature 1, whatever the term's is: softened, all teachers look alike.

    Args:
        of: whether "probabilities" or "logits" are mixed.
    """

    def weigh(signals: Signals) -> Array:
        found = jnp.where(present(signals), cross_entropy.entropy(spoken(signals)), 0.0)
        total = jnp.sum(found, axis=0)
        return 1 - found / jnp.where(total > 0, total, 1.0)

    return mixing(weigh, of)
