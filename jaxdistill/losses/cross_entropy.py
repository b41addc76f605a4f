"""Hard labels: the task loss.

Label smoothing (Szegedy et al. 2016, arxiv.org/abs/1512.00567) is the teacher-free control of soft targets.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Integer

from jaxdistill.losses.term import stateless
from jaxdistill.registry import losses
from jaxdistill.types import Array, Signals, Term


def softmax_cross_entropy(
    logits: Float[Array, "*batch classes"], labels: Integer[Array, "*batch"], label_smoothing: float = 0.0
) -> Float32[Array, "*batch"]:
    """Cross-entropy in float32; `label_smoothing` is the share of probability spread evenly over all classes."""
    log_q = jax.nn.log_softmax(logits.astype(jnp.float32))
    hard = -jnp.take_along_axis(log_q, labels[..., None], axis=-1)[..., 0]
    if label_smoothing == 0.0:  # a class masked with -inf would make the mean infinite
        return hard
    return (1 - label_smoothing) * hard - label_smoothing * jnp.mean(log_q, axis=-1)


@losses.register
def cross_entropy(label_smoothing: float = 0.0) -> Term:
    """Cross-entropy of the student with the batch's `label`.

    Args:
        label_smoothing: between 0 and 1.
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing lies between 0 and 1; got {label_smoothing}")

    def values(signals: Signals) -> Array:
        return softmax_cross_entropy(signals.student.logits, signals.batch["label"], label_smoothing)

    return stateless(values)
