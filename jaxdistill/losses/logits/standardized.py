"""Logit standardisation: replace each example's logits by their z-scores before another loss.

Sun et al., Logit Standardization in Knowledge Distillation, 2024 (arxiv.org/abs/2403.01427). For the logits z of one
example (or token), of the student and of the teacher:

    z -> (z - mean(z)) / (std(z) + 1e-7), of student and teacher; std divides by classes - 1

With one temperature for both, a small student needs logits as large as its teacher's. With standardised logits it has
to match only their order and proportions, and T is a temperature of z-scores: the paper has T = 2 and a weight of 9.

Classes that a model masks with -inf stay masked and are left out of its mean and standard deviation. Several teachers
are fused first, at the other loss's temperature; then the fused teacher is standardised.

Config: objective.kd.term = "standardized(loss=kd(temperature=2.0))"
When: classification with a student much smaller than its teacher; around `kd`, `dkd` or any other loss of logits.
Checked: against published code (logit-standardization-KD) around kd and dkd, in value and gradient.
"""

from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Outputs, Signals
from jaxdistill.losses.term import on_signals, precise

EPSILON = 1e-7


def z_score(logits: Float[Array, "*batch classes"]) -> Float[Array, "*batch classes"]:
    """Compute (z - mean) / (std + 1e-7) of logits z over the classes; 0 if all finite logits of an example are equal.

    A logit of -inf (a masked class) stays -inf, and is left out of mean and standard deviation.
    """
    logits = precise(logits)
    unmasked = logits != -jnp.inf
    count = jnp.sum(unmasked, axis=-1, keepdims=True)
    total = jnp.sum(jnp.where(unmasked, logits, 0.0), axis=-1, keepdims=True)
    centred = jnp.where(unmasked, logits, 0.0) - jnp.where(unmasked, total / jnp.maximum(count, 1), 0.0)
    variance = jnp.sum(centred**2, axis=-1, keepdims=True) / jnp.maximum(count - 1, 1)
    constant = variance == 0  # the gradient of a root at 0 is infinite
    deviation = jnp.where(constant, 0.0, jnp.sqrt(jnp.where(constant, 1.0, variance)))
    return jnp.where(unmasked, centred / (deviation + EPSILON), -jnp.inf)


@losses.register
def standardized(loss: Term) -> Term:
    """Build a term that applies another loss to the z-scores (z - mean(z)) / (std(z) + 1e-7) of the logits z.

    Mean and standard deviation are over the classes. The logits of student, teachers and fused teacher are
    standardised.

    Args:
        loss: the loss to apply, such as `kd(temperature=2.0)`.
    """

    def standardize(outputs: Outputs) -> Outputs:
        return replace(outputs, logits=z_score(outputs.logits), sparse=None)

    def standardize_all(signals: Signals) -> Signals:
        teacher = None if signals.teacher is None else standardize(signals.teacher)
        teachers = tuple(map(standardize, signals.teachers))
        return replace(signals, student=standardize(signals.student), teachers=teachers, teacher=teacher)

    return on_signals(loss, standardize_all)._replace(linear=False)
