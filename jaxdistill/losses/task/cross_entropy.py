"""Cross-entropy with labels, optionally smoothed: the task loss.

Label smoothing (Szegedy et al. 2016, arxiv.org/abs/1512.00567) softens labels without a teacher. It is the control for
soft targets.

Config: objective.cross_entropy.term = "cross_entropy(label_smoothing=0.1)"
Mean: over tokens (`reduction="token"`), as in transformers 5.23 (loss/loss_utils.py, lines 41 to 47).
When: the labels are reliable. Use it with a small weight beside soft targets, and alone to train the same student
without a teacher, as a control.
Checked: against float64 numpy, with and without smoothing, for classes and for distributions; by hand.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Integer

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.sums import values_at_labels
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.term import precise, stateless


def softmax_cross_entropy(
    logits: Float[Array, "*batch classes"], labels: Integer[Array, "*batch"], label_smoothing: float = 0.0
) -> Float[Array, "*batch"]:
    """Compute the cross-entropy of logits with class labels; a label outside 0 to classes - 1 gives NaN.

    Args:
        logits: `[*batch, classes]`.
        labels: `[*batch]`.
        label_smoothing: share of the probability that is spread evenly over all classes whose logit is not -inf.
    """
    logits = precise(logits)
    norm = jax.nn.logsumexp(logits, axis=-1)  # all log-probabilities of a large vocabulary would take as long again
    hard = norm - values_at_labels(logits, labels)
    if label_smoothing == 0.0:
        return hard
    uniform, log_q = _uniform(logits), logits - norm[..., None]
    smooth = jnp.sum(uniform * jnp.where(uniform > 0, log_q, 0.0), axis=-1)
    return (1 - label_smoothing) * hard - label_smoothing * smooth


def soft_cross_entropy(
    logits: Float[Array, "*batch classes"], target: Float[Array, "*batch classes"], label_smoothing: float = 0.0
) -> Float[Array, "*batch"]:
    """Compute the cross-entropy of logits with target distributions, such as raters' votes or labels of a mixed image.

    A class whose target probability is 0 adds nothing, whatever its logit.

    Args:
        logits: `[*batch, classes]`.
        target: probabilities, `[*batch, classes]`.
        label_smoothing: share of the probability that is spread evenly over all classes whose logit is not -inf.
    """
    log_q = jax.nn.log_softmax(precise(logits))
    target = precise(target)
    if label_smoothing > 0.0:
        target = (1 - label_smoothing) * target + label_smoothing * _uniform(logits)
    # select BEFORE the product: 0 * (-inf) is NaN, in the value and in its gradient
    return -jnp.sum(target * jnp.where(target > 0, log_q, 0.0), axis=-1)


def entropy(
    logits: Float[Array, "*batch classes"], temperature: Float[Array, ""] | float = 1.0
) -> Float[Array, "*batch"]:
    """Compute the entropy H(softmax(logits / T)), in nats; a class of probability 0 adds nothing."""
    scaled = precise(logits) / temperature
    return soft_cross_entropy(scaled, jax.nn.softmax(scaled))


def _uniform(logits: Array) -> Array:
    """Return the uniform distribution over the classes whose logit is not -inf."""
    unmasked = (logits > -jnp.inf).astype(precise(logits).dtype)
    return unmasked / jnp.sum(unmasked, axis=-1, keepdims=True)


@losses.register
def cross_entropy(label_smoothing: float = 0.0, target: str = "label") -> Term:
    """Build the loss term -sum_c p_c log q_c, the cross-entropy of the student with targets, per example or token.

    q is the student's softmax(logits), and p the target distribution: a field of the batch.

    Args:
        label_smoothing: share of the probability that is spread evenly over all classes, from 0 to below 1.
        target: name of the field with the targets: classes `[*batch]`, such as `label`, or distributions
            `[*batch, classes]`, such as `label_probs`.

    Raises:
        ValueError: `label_smoothing` is out of range; when the loss is computed, the batch lacks the field, or the
            shape of the field does not fit the logits.
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must be at least 0 and below 1; got {label_smoothing}")

    def values(signals: Signals) -> Array:
        logits, targets = signals.student.logits, signals.batch.get(target)
        if targets is None:
            fields = ", ".join(sorted(signals.batch))
            raise ValueError(f"the batch has no field {target!r}; it has {fields}. Set target to one of them")
        if targets.shape == logits.shape:
            return soft_cross_entropy(logits, targets, label_smoothing)
        if targets.shape == logits.shape[:-1]:
            return softmax_cross_entropy(logits, targets, label_smoothing)
        shapes = f"{target!r} has shape {list(targets.shape)} and the logits have shape {list(logits.shape)}"
        raise ValueError(f"{shapes}; a target must hold classes [*batch] or distributions [*batch, classes]")

    return stateless(values)
