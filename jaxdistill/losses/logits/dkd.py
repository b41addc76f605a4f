"""Decoupled knowledge distillation (DKD): target-class and non-target-class divergence with separate weights.

Zhao et al., Decoupled Knowledge Distillation, 2022 (arxiv.org/abs/2203.08679). With p = softmax(t / T) of the teacher's
logits t, q = softmax(s / T) of the student's logits s, y the label, and ~ for the distribution over all classes but y:

    TCKD = KL((p_y, 1 - p_y) || (q_y, 1 - q_y))         NCKD = KL(p~ || q~)
    T^2 [a TCKD + b NCKD]                               a = 1, b = 8, T = 4

`kd` is TCKD + (1 - p_y) NCKD: the more confident the teacher is in the label, the less weight NCKD gets. b undoes this,
so the best b grows with the teacher's confidence: 2 to 8 at T = 4 on CIFAR-100, 0.5 and 2 at T = 1 on ImageNet.

The paper warms the loss up over the first 20 of 240 epochs. Here this is a schedule of the loss weight,
`linear(start=0.0, end=1.0, until=0.083)`. The published code hides the label by adding -1000 to its logit, which fails
for logits of that size. Here the label is left out of the softmax. A class that the teacher masks with -inf adds
nothing, even if it is the label.

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
    """Compute TCKD = KL((p_y, 1 - p_y) || (q_y, 1 - q_y)), the divergence of the label's probability, without T^2.

    p_y and q_y are the teacher's and the student's probability of the label y, from softmax(logits / temperature). The
    value is NaN for a label outside 0 to classes - 1.
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
    """Compute NCKD = KL(p || q) over all classes but the label, without the factor T^2.

    p and q are the teacher's and the student's softmax(logits / temperature) over these classes. The value is 0 for an
    example whose teacher logits are -inf for all of these classes.
    """
    student, teacher = _mask_label(student, labels), _mask_label(teacher, labels)
    all_masked = jnp.all(teacher == -jnp.inf, axis=-1)
    student, teacher = (jnp.where(all_masked[..., None], 0.0, logits) for logits in (student, teacher))
    return jnp.where(all_masked, 0.0, kl_divergence(student, teacher, temperature))


def _mask_label(logits: Array, labels: Array) -> Array:
    return jnp.where(labels[..., None] == jnp.arange(logits.shape[-1]), -jnp.inf, logits)


def _log_sum_exp(logits: Array) -> Array:
    """Compute logsumexp over the classes. It is -inf, with a gradient of 0, if all logits are -inf."""
    all_masked = jnp.all(logits == -jnp.inf, axis=-1)
    return jnp.where(all_masked, -jnp.inf, jax.nn.logsumexp(jnp.where(all_masked[..., None], 0.0, logits), axis=-1))


@losses.register
def dkd(alpha: float = 1.0, beta: float = 8.0, temperature: Scalar = 4.0, scale_t2: bool = True) -> Term:
    """Build the loss term T^2 (alpha TCKD + beta NCKD) of decoupled knowledge distillation, per example.

        TCKD = KL((p_y, 1 - p_y) || (q_y, 1 - q_y)),   NCKD = KL(p' || q'), with
        p' and q' the probabilities of all classes but the label y, scaled to sum to 1

    p and q are the teacher's and the student's softmax(logits / T). The batch must have the labels as the field
    `label`. Several teachers are first combined into one by the config's fusion, such as `average()`.

    Args:
        alpha: weight of TCKD.
        beta: weight of NCKD.
        temperature: T, a positive number or a schedule over the training steps.
        scale_t2: multiply the loss by T^2, so that its gradient keeps its size when T changes, as in the paper.

    Raises:
        ValueError: `alpha` or `beta` is negative, or the temperature is not positive; when the loss is computed, the
            batch does not have one label for each example.
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
