"""Average of several teachers: of their probabilities (the mixture), or of their logits (the geometric mean).

The mean of forward KLs to several teachers is, up to a constant, the KL to the mean of their probabilities, not of
their logits. The mixture is computed at the term's temperature. Mixing first and softening afterwards has another
gradient (`tests/fusion/test_fusion.py`).

You, Xu, Xu and Tao, Learning from Multiple Teacher Networks, 2017 (doi.org/10.1145/3097983.3098135).

Config: fusion = "average()"
When: the teachers are similar and about equally good. Random teachers do little harm; teachers that agree on a mistake
    do.
Checked: one teacher is the identity and the order of teachers does not matter (common tests of fusions); by hand.
"""

from jaxdistill.core.interfaces import Fusion
from jaxdistill.core.registry import fusions
from jaxdistill.fusion.mixture import MixtureSpace, fixed_weights, mixture_fusion


@fusions.register
def average(of: MixtureSpace = "probabilities", weights: tuple[float, ...] = ()) -> Fusion:
    """Fuse the teachers into one: average their probabilities or logits, with fixed weights w_k.

    Args:
        of: the space of the average. "probabilities" gives `sum_k w_k softmax(t_k / T)`, with logits t_k of teacher k
            and temperature T; "logits" gives `sum_k w_k t_k`.
        weights: weight of each teacher, in the order of the config, normalised to sum to 1; an empty tuple means equal
            weights.

    Raises:
        ValueError: weights are negative, all 0, or their number is not that of the teachers.
    """
    return mixture_fusion(fixed_weights(weights), of)
