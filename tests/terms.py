"""Losses that are built as a config builds them, and their values on given signals."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from examples import HORIZON

from jaxdistill.core.interfaces import Term
from jaxdistill.core.types import Array, Signals
from jaxdistill.run.parts import build_loss as loss


def build_loss(spec: str) -> Term:
    """Build a loss as a config does, for the horizon of the examples."""
    return loss(spec, "objective", HORIZON)


@functools.cache
def compiled_loss(spec: str) -> Callable[[Signals, Any], Array]:
    """Return `(signals, params) -> values` of a loss with the first teacher; None stands for its initial params."""
    term = build_loss(spec)

    def apply(seen: Signals, params: Any) -> Array:
        at = term.temperature(seen.step) if term.temperature else 1.0
        seen = replace(seen, teacher=seen.teachers[0], temperature=at)
        first, state = term.init(jax.random.key(0), seen)
        return term.apply(first if params is None else params, state, seen, key=jax.random.key(0))[0]

    return jax.jit(apply)


def loss_values(spec: str, seen: Signals, params: Any = None) -> np.ndarray:
    """Compute the values of a loss for these signals."""
    return np.asarray(compiled_loss(spec)(seen, params))
