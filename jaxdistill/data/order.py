"""The order of training records if they are not shuffled in every epoch: tasks, one after the other.

An order is a pure function of a field of the records and of the batch number, so there is no state to save.
"""

from typing import NamedTuple

import numpy as np

from jaxdistill.core.registry import orders
from jaxdistill.data.stream import Phases


class Order(NamedTuple):
    """The phases of a run, each with its own records.

    groups: values of the field in the records of each phase
    steps: batches per phase; the last phase does not end
    field: the field of the records that is compared with the groups
    """

    groups: tuple[tuple[int, ...], ...]
    steps: int
    field: str

    def phases(self, values: np.ndarray, numbers: np.ndarray) -> Phases:
        """Return the records of each phase.

        Args:
            values: the field of all records, `[records]`.
            numbers: of the records to draw from, rising.

        Raises:
            ValueError: a phase has no records.
        """
        pools = tuple(numbers[np.isin(values[numbers], group)] for group in self.groups)
        for group, pool in zip(self.groups, pools, strict=True):
            if not len(pool):
                raise ValueError(f"no record has a {self.field} of {group}; leave this task out, or use more records")
        return Phases(pools, self.steps)


@orders.register
def tasks(groups: tuple[tuple[int, ...], ...], steps: int, field: str = "label") -> Order:
    """Learn tasks one after the other without repeating them, such as classes or domains in continual learning.

    Args:
        groups: the classes of each task, such as ((0, 1), (2, 3)); a class may be in several.
        steps: batches per task; the last task continues to the end of the run.
        field: the field that defines tasks: `label`, or another field of whole numbers.

    Raises:
        ValueError: there are no tasks, a task is empty, or `steps` is below 1.
    """
    if not groups or not all(groups) or steps < 1:
        raise ValueError(f"every task needs at least one value, and 1 step or more; got groups={groups}, steps={steps}")
    return Order(groups, steps, field)
