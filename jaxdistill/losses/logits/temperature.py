"""Loss terms with a temperature T, and with the factor T^2 that keeps the size of their gradient.

Hinton et al., Distilling the Knowledge in a Neural Network, 2015 (arxiv.org/abs/1503.02531), section 2: the gradient
of a divergence between distributions softened by T falls as 1 / T^2.
"""

from collections.abc import Callable
from typing import Any

from jaxdistill.core.interfaces import Term
from jaxdistill.core.schedules import Scalar, as_schedule, require_positive
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.term import stateless


def scaled_by_t2(values: Array, signals: Signals, scale_t2: bool) -> Array:
    """Multiply a loss by T^2, with T = `signals.temperature`; if `scale_t2` is False, return the loss unchanged."""
    return values * signals.temperature**2 if scale_t2 else values


def softened(values: Callable[[Signals], Array], temperature: Scalar, scale_t2: bool, **fields: Any) -> Term:
    """Build a loss term that compares student and fused teacher at a temperature T, without parameters or state.

    Args:
        values: function that computes the loss of each example (or token) from the `Signals` (outputs of student and
            teachers, and the batch); `signals.temperature` is T at the current step.
        temperature: T, a positive number or a schedule over the training steps.
        scale_t2: multiply the loss by T^2, so that its gradient keeps its size when T changes.
        fields: further fields of the `Term`.

    Raises:
        ValueError: the temperature is not positive at every step.
    """
    schedule = require_positive("temperature", as_schedule(temperature))
    scaled = lambda signals: scaled_by_t2(values(signals), signals, scale_t2)
    return stateless(scaled, needs=frozenset({"teacher"}), temperature=schedule, **fields)
