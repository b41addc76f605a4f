"""The mean of several teachers: of their probabilities (the mixture), or of their logits (the geometric mean).

The mean of forward KLs to several teachers is, up to a constant, the KL to the mean of their probabilities, not of
their logits. The mixture is taken at the term's temperature: mixing first and softening afterwards has another
gradient (`tests/test_fusion.py`).

You, Xu, Xu and Tao, Learning from Multiple Teacher Networks, 2017 (doi.org/10.1145/3097983.3098135).

Config: fusion = "average()"
When: teachers of one kind that are about equally good; random ones do little harm, ones that agree on a mistake do.
Checked: by law (one teacher is the identity, permuting teachers changes nothing); by hand.
"""

from jaxdistill.core.registry import fusions
from jaxdistill.core.types import Fusion
from jaxdistill.fusion.mixture import Of, fixed, mixing


@fusions.register
def average(of: Of = "probabilities", weights: tuple[float, ...] = ()) -> Fusion:
    """The weighted mean of all teachers.

    Args:
        of: "probabilities" or "logits".
        weights: one for each teacher, normalised to sum to 1; equal ones if empty.

    Raises:
        ValueError: as of `fixed`.
    """
    return mixing(fixed(weights), of)
