"""One teacher: the identity.

Own: nothing is computed.

Config: fusion = "single(teacher=0)"
When: there is one teacher.
Checked: by law.
"""

from jaxdistill.core.registry import fusions
from jaxdistill.core.types import Fusion
from jaxdistill.losses.term import one_of


@fusions.register
def single(teacher: int = 0) -> Fusion:
    """Hands on one teacher as it is.

    Args:
        teacher: its number, in the order of the config.
    """

    def apply(params, state, signals, *, key):
        return one_of(signals.teachers, teacher), state

    return Fusion(lambda key, signals: ({}, {}), apply)
