"""Orders of the training records (examples) other than a shuffle in every epoch: tasks, one after the other.

An order is a pure function of a field of the records and of the batch number, so there is no state to save.
"""

from typing import NamedTuple

import numpy as np

from jaxdistill.core.registry import orders
from jaxdistill.data.stream import Phases


class Order(NamedTuple):
    """A rule that divides a run into phases, each of which trains on some of the examples of the data set.

    groups: for each phase, a tuple of values, such as classes; the phase trains on the examples whose `field` has one
        of these values, so ((0, 1), (2, 3)) means two phases
    steps: batches per phase; the last phase continues to the end of the run
    field: name of the field whose value decides to which phases an example belongs, such as `label`
    """

    groups: tuple[tuple[int, ...], ...]
    steps: int
    field: str

    def phases(self, values: np.ndarray, numbers: np.ndarray) -> Phases:
        """Return the phases of the run, with the numbers of the examples (records) that each phase trains on.

        Args:
            values: the value of the field `self.field` of every example, `[records]`.
            numbers: sorted numbers of the examples that the run may use.

        Raises:
            ValueError: a phase has no examples.
        """
        pools = tuple(numbers[np.isin(values[numbers], group)] for group in self.groups)
        for group, pool in zip(self.groups, pools, strict=True):
            if not len(pool):
                raise ValueError(f"no record has a {self.field} of {group}; leave this task out, or use more records")
        return Phases(pools, self.steps)


@orders.register
def tasks(groups: tuple[tuple[int, ...], ...], steps: int, field: str = "label") -> Order:
    """Train on tasks (sets of classes or domains) one after the other, each task once, as in continual learning.

    Args:
        groups: the classes of each task, such as ((0, 1), (2, 3)); a class may be in several tasks.
        steps: batches per task; the last task continues to the end of the run.
        field: the field of the examples that holds the class, by default `label`; any field of integers is possible,
            such as a domain.

    Raises:
        ValueError: there are no tasks, a task is empty, or `steps` is below 1.
    """
    if not groups or not all(groups) or steps < 1:
        raise ValueError(f"every task needs at least one value, and 1 step or more; got groups={groups}, steps={steps}")
    return Order(groups, steps, field)
