"""Single teacher: use one teacher's outputs unchanged.

No paper: the identity, without any computation.

Config: fusion = "single(teacher=0)"
When: there is one teacher.
Checked: common tests of fusions.
"""

from jaxdistill.core.interfaces import Fusion
from jaxdistill.core.registry import fusions
from jaxdistill.core.types import Key, Outputs, Params, Signals, State
from jaxdistill.losses.term import select_teacher


@fusions.register
def single(teacher: int = 0) -> Fusion:
    """Use the outputs of one teacher, and ignore all other teachers.

    Args:
        teacher: number of the teacher, from 0, in the order of the config.
    """

    def apply(params: Params, state: State, signals: Signals, *, key: Key) -> tuple[Outputs, State]:
        return select_teacher(signals.teachers, teacher), state

    return Fusion(lambda key, signals: ({}, {}), apply)
