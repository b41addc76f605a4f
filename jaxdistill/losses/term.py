"""The common case of a term: a pure function of the signals, without parameters or state."""

from collections.abc import Callable
from typing import Any

from jaxdistill.types import Array, Signals, Term


def stateless(values: Callable[[Signals], Array | tuple[Array, Array]], **fields: Any) -> Term:
    """A term that computes `values(signals)` and remembers nothing; `fields` as of `Term`."""

    def apply(params, state, signals, *, key):
        return values(signals), state

    return Term(lambda key, signals: ({}, {}), apply, **fields)
