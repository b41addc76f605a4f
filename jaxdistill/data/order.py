"""In which order training records come, where they are not shuffled over and over: tasks, one after the other.

An order is a pure function of what the records say and of the number of a batch, so that there is nothing to save.
"""

from typing import NamedTuple

import numpy as np

from jaxdistill.core.registry import orders
from jaxdistill.data.stream import Phases


class Order(NamedTuple):
    """Phases of a run, each with records of its own.

    groups: what the field holds in the records of each phase
    steps: of a phase; the last one goes on
    field: of the records
    """

    groups: tuple[tuple[int, ...], ...]
    steps: int
    field: str

    def phases(self, values: np.ndarray, numbers: np.ndarray) -> Phases:
        """The records of each phase.

        Args:
            values: the field of all records, `[records]`.
            numbers: of the records to draw from, rising.

        Raises:
            ValueError: a phase has no records.
        """
        pools = tuple(numbers[np.isin(values[numbers], group)] for group in self.groups)
        for group, pool in zip(self.groups, pools, strict=True):
            if not len(pool):
                raise ValueError(f"no record has a {self.field} of {group}; leave this task out, or take more records")
        return Phases(pools, self.steps)


@orders.register
def tasks(groups: tuple[tuple[int, ...], ...], steps: int, field: str = "label") -> Order:
    """Tasks that come one after the other and never again, as of classes or domains.

    Args:
        groups: the classes of each task, such as ((0, 1), (2, 3)); a class may be in several.
        steps: of each task, in batches; the last one goes on to the end of the run.
        field: what is grouped: `label`, or another field of whole numbers.

    Raises:
        ValueError: there are no tasks, one is empty, or it has no steps.
    """
    if not groups or not all(groups) or steps < 1:
        raise ValueError(f"every task has something in it, and 1 step or more; got groups={groups}, steps={steps}")
    return Order(groups, steps, field)
