"""The common case of a term: a pure function of the signals, without parameters or state."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxdistill.types import Array, Signals, Term


def stateless(values: Callable[[Signals], Array | tuple[Array, Array]], **fields: Any) -> Term:
    """A term that computes `values(signals)` and remembers nothing; `fields` as of `Term`."""

    def apply(params, state, signals, *, key):
        return values(signals), state

    return Term(lambda key, signals: ({}, {}), apply, **fields)


def one_of[T](teachers: Sequence[T], number: int) -> T:
    """The teacher, or its parameters, of a number in the order of the config.

    Raises:
        ValueError: if there is none.
    """
    if not -len(teachers) <= number < len(teachers):
        raise ValueError(f"there is no teacher {number}; teachers count from 0, and there are {len(teachers)}")
    return teachers[number]
