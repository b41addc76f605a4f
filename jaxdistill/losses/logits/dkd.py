"""Decoupled knowledge distillation (DKD): target-class and non-target-class divergence with separate weights.

Zhao et al., Decoupled Knowledge Distillation, 2022 (arxiv.org/abs/2203.08679). With p = softmax(t / T),
q = softmax(s / T), y the label, and ~ for the distribution over all classes but y:

    TCKD = KL((p_y, 1 - p_y) || (q_y, 1 - q_y))         NCKD = KL(p~ || q~)
    T^2 [a TCKD + b NCKD]                               a = 1, b = 8, T = 4

`kd` is TCKD + (1 - p_y) NCKD: the more confident the teacher is in the label, the less weight NCKD gets. b undoes this,
so it grows with the teacher's confidence: 2 to 8 at T = 4 on CIFAR-100, 0.5 and 2 at T = 1 on ImageNet.

The published warm-up over 20 of 240 epochs is a schedule of the weight, `linear(start=0.0, end=1.0, until=0.083)`.
The published code hides the label by adding -1000 to its logit, which fails for logits of that size. Here the label is
left out of the softmax. A class that the teacher masks with -inf adds nothing, even if it is the label.

Config: objective.dkd.term = "dkd(alpha=1.0, beta=8.0, temperature=4.0)"
When: classification with labels and a confident teacher. In the paper it beats `kd` by 3 points there (CIFAR-100,
    ResNet 32x4 to 8x4: 76.32 and 73.33).
Checked: against published code (mdistiller), in value and gradient; the identity with `kd`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Integer

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.schedules import Scalar
from jaxdistill.core.sums import values_at_labels
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.logits.kd import kl_divergence
from jaxdistill.losses.logits.temperature import softened
from jaxdistill.losses.term import masked_labels, precise


def target_divergence(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    temperature: Float[Array, ""] | float = 1.0,
) -> Float[Array, "*batch"]:
    """Compute TCKD: the KL divergence over {label, any other class}, without T^2.

    A label that is not a class gives NaN.
    """

    def binary_logits(logits: Array) -> Array:
        logits = precise(logits) / temperature
        return jnp.stack([values_at_labels(logits, labels), _log_sum_exp(_mask_label(logits, labels))], axis=-1)

    return kl_divergence(binary_logits(student), binary_logits(teacher))


def other_divergence(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    temperature: Float[Array, ""] | float = 1.0,
) -> Float[Array, "*batch"]:
    """Compute NCKD: the KL divergence over all classes but the label, without T^2.

    A row in which the teacher masks all of these classes gives 0.
    """
    student, teacher = _mask_label(student, labels), _mask_label(teacher, labels)
    all_masked = jnp.all(teacher == -jnp.inf, axis=-1)
    student, teacher = (jnp.where(all_masked[..., None], 0.0, logits) for logits in (student, teacher))
    return jnp.where(all_masked, 0.0, kl_divergence(student, teacher, temperature))


def _mask_label(logits: Array, labels: Array) -> Array:
    return jnp.where(labels[..., None] == jnp.arange(logits.shape[-1]), -jnp.inf, logits)


def _log_sum_exp(logits: Array) -> Array:
    """Compute logsumexp over the classes; -inf with a gradient of 0 if all logits are -inf."""
    all_masked = jnp.all(logits == -jnp.inf, axis=-1)
    return jnp.where(all_masked, -jnp.inf, jax.nn.logsumexp(jnp.where(all_masked[..., None], 0.0, logits), axis=-1))


@losses.register
def dkd(alpha: float = 1.0, beta: float = 8.0, temperature: Scalar = 4.0, scale_t2: bool = True) -> Term:
    """Compute the decoupled divergence from the fused teacher; the batch's `label` holds classes.

    Args:
        alpha: weight of TCKD, the label against all other classes.
        beta: weight of NCKD, the other classes among each other.
        temperature: number or schedule, positive.
        scale_t2: multiply by T^2, as the paper does.

    Raises:
        ValueError: `alpha` or `beta` is negative, or the temperature is not positive. When applied: the batch does not
            have one label per row.
    """
    if alpha < 0 or beta < 0:
        raise ValueError(f"alpha and beta must be 0 or more; got alpha={alpha}, beta={beta}")

    def values(signals: Signals) -> Array:
        student, teacher, labels = signals.student.logits, signals.teacher.logits, signals.batch.get("label")
        if labels is None or labels.shape != student.shape[:-1]:
            problem = "no field 'label'" if labels is None else f"labels of shape {list(labels.shape)}"
            shape = list(student.shape)
            raise ValueError(f"the batch has {problem}, the logits have shape {shape}; dkd needs one class per row")
        labels = masked_labels(signals)
        target = target_divergence(student, teacher, labels, signals.temperature)
        other = other_divergence(student, teacher, labels, signals.temperature)
        return alpha * target + beta * other

    return softened(values, temperature, scale_t2)
