"""The temperature of a loss on class distributions, and the factor T^2 that undoes what it does to the gradient.

Hinton et al., Distilling the Knowledge in a Neural Network, 2015 (arxiv.org/abs/1503.02531), section 2: the gradient
of a softened divergence falls as 1 / T^2.
"""

from collections.abc import Callable
from typing import Any

from jaxdistill.core.interfaces import Term
from jaxdistill.core.schedules import Scalar, as_schedule, require_positive
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.term import stateless


def softened(values: Callable[[Signals], Array], temperature: Scalar, scale_t2: bool, **fields: Any) -> Term:
    """Return a stateless term that compares the student with the fused teacher at a temperature.

    Args:
        values: computes the loss from the signals; `signals.temperature` is the temperature at the current step.
        temperature: number or schedule, positive.
        scale_t2: multiply by T^2, so that the gradient keeps its size.
        fields: fields of `Term`.

    Raises:
        ValueError: the temperature is not positive at every step.
    """
    schedule = require_positive("temperature", as_schedule(temperature))
    scaled = lambda signals: values(signals) * signals.temperature**2
    return stateless(scaled if scale_t2 else values, needs=frozenset({"teacher"}), temperature=schedule, **fields)
