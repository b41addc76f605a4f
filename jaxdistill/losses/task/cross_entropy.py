"""Hard labels: the task loss.

Label smoothing (Szegedy et al. 2016, arxiv.org/abs/1512.00567) is the teacher-free control of soft targets.

Config: objective.cross_entropy.term = "cross_entropy(label_smoothing=0.1)"
When: the labels are to be trusted: beside soft targets at a small weight, and alone as the control of every student.
Checked: against float64 numpy, smoothed and not, classes and distributions; by hand.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Integer

from jaxdistill.core.registry import losses
from jaxdistill.core.sums import of_label
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.term import precise, stateless


def softmax_cross_entropy(
    logits: Float[Array, "*batch classes"], labels: Integer[Array, "*batch"], label_smoothing: float = 0.0
) -> Float[Array, "*batch"]:
    """Cross-entropy; `label_smoothing` is the share of probability spread evenly over all classes that are not -inf.

    NaN for a label that is no class.
    """
    logits = precise(logits)
    norm = jax.nn.logsumexp(logits, axis=-1)  # of a large vocabulary, log-probabilities of all would take as long as it
    hard = norm - of_label(logits, labels)
    if label_smoothing == 0.0:
        return hard
    even, log_q = _evenly(logits), logits - norm[..., None]
    return (1 - label_smoothing) * hard - label_smoothing * jnp.sum(even * jnp.where(even > 0, log_q, 0.0), axis=-1)


def soft_cross_entropy(
    logits: Float[Array, "*batch classes"], target: Float[Array, "*batch classes"], label_smoothing: float = 0.0
) -> Float[Array, "*batch"]:
    """Cross-entropy with a distribution: what raters said, or the labels of a mixed image.

    A class of probability 0 adds nothing, whatever its logit.
    """
    log_q = jax.nn.log_softmax(precise(logits))
    target = precise(target)
    if label_smoothing > 0.0:
        target = (1 - label_smoothing) * target + label_smoothing * _evenly(logits)
    # selected BEFORE the product: 0 * (-inf) is NaN, in the value and in its gradient
    return -jnp.sum(target * jnp.where(target > 0, log_q, 0.0), axis=-1)


def entropy(
    logits: Float[Array, "*batch classes"], temperature: Float[Array, ""] | float = 1.0
) -> Float[Array, "*batch"]:
    """H(softmax(logits / T)), in nats; a class of probability 0 adds nothing."""
    scaled = precise(logits) / temperature
    return soft_cross_entropy(scaled, jax.nn.softmax(scaled))


def _evenly(logits: Array) -> Array:
    """The uniform distribution over the classes that the student has; one that it masks with -inf gets no share."""
    has = (logits > -jnp.inf).astype(precise(logits).dtype)
    return has / jnp.sum(has, axis=-1, keepdims=True)


@losses.register
def cross_entropy(label_smoothing: float = 0.0, target: str = "label") -> Term:
    """Cross-entropy of the student with a field of the batch.

    Args:
        label_smoothing: between 0 and 1.
        target: the field: classes `[*batch]`, such as `label`, or distributions `[*batch, classes]`, such as
            `label_probs`.

    Raises:
        ValueError: `label_smoothing` is out of range; when it is applied, the batch has no such field, or of another
            shape.
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing lies between 0 and 1; got {label_smoothing}")

    def values(signals: Signals) -> Array:
        logits, wanted = signals.student.logits, signals.batch.get(target)
        if wanted is None:
            known = ", ".join(sorted(signals.batch))
            raise ValueError(f"the batch has no field {target!r}; it has {known}. Name one of them as target")
        if wanted.shape == logits.shape:
            return soft_cross_entropy(logits, wanted, label_smoothing)
        if wanted.shape == logits.shape[:-1]:
            return softmax_cross_entropy(logits, wanted, label_smoothing)
        shapes = f"{target} has shape {list(wanted.shape)} beside logits of {list(logits.shape)}"
        raise ValueError(f"{shapes}; a target holds classes [*batch], or distributions [*batch, classes]")

    return stateless(values)
