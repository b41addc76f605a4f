"""Single teacher: use one teacher's outputs unchanged.

Own: the identity, without any computation.

Config: fusion = "single(teacher=0)"
When: there is one teacher.
Checked: common tests of fusions.
"""

from jaxdistill.core.interfaces import Fusion
from jaxdistill.core.registry import fusions
from jaxdistill.losses.term import select_teacher


@fusions.register
def single(teacher: int = 0) -> Fusion:
    """Select one teacher.

    Args:
        teacher: its number, in the order of the config.
    """

    def apply(params, state, signals, *, key):
        return select_teacher(signals.teachers, teacher), state

    return Fusion(lambda key, signals: ({}, {}), apply)
