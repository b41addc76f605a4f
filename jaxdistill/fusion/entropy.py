"""Entropy-based fusion: weight teachers with low entropy more, row by row.

Kwon et al., Adaptive Knowledge Distillation Based on Entropy, 2020 (ieeexplore.ieee.org/document/9054698); in the form
of Zhang et al., 2022 (arxiv.org/abs/2201.00007), who compare with it:

    w_k = (1 - H_k / sum_j H_j) / (K - 1),    H_k the entropy of teacher k

It needs no labels, and no teacher gets a weight above 1 / (K - 1). A teacher that is confident and wrong is trusted: a
student of digits reaches 89.4 % with a good teacher alone, and 4.7 % with two more teachers that agree on a wrong
answer (`python -m experiments.routing --worlds agreeing`).

Config: fusion = "entropy()"
When: there are no labels, and teachers are uncertain where they are wrong, such as specialists of some classes.
Checked: against float64 numpy; common tests of fusions.
"""

import jax.numpy as jnp

from jaxdistill.core.interfaces import Fusion
from jaxdistill.core.registry import fusions
from jaxdistill.core.types import Array, Signals
from jaxdistill.fusion.mixture import MixtureSpace, mixture_fusion, present_mask, teacher_logits
from jaxdistill.losses.task import cross_entropy


@fusions.register
def entropy(of: MixtureSpace = "probabilities") -> Fusion:
    """Average the teachers of each row (example or token) with weights `w_k = (1 - H_k / sum_j H_j) / (K - 1)`.

    H_k is the entropy of teacher k, and K is the number of teachers. Entropies are computed at temperature 1, because
    the softened predictions of all teachers have similar entropies.

    Args:
        of: the space of the average. "probabilities" gives `sum_k w_k softmax(t_k / T)`, with logits t_k of teacher k
            and temperature T; "logits" gives `sum_k w_k t_k`.
    """

    def weigh(signals: Signals) -> Array:
        entropies = jnp.where(present_mask(signals), cross_entropy.entropy(teacher_logits(signals)), 0.0)
        total = jnp.sum(entropies, axis=0)
        return 1 - entropies / jnp.where(total > 0, total, 1.0)

    return mixture_fusion(weigh, of)
