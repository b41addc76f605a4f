"""Logit standardisation: each row's logits as z-scores before another loss reads them.

Sun et al., Logit Standardization in Knowledge Distillation, 2024 (arxiv.org/abs/2403.01427).

    z -> (z - mean(z)) / (std(z) + 1e-7), of student and teacher; std divides by classes - 1

One temperature for both asks a small student for logits as large as its teacher's. Standardised, it has to match their
order and proportions only, and T is a temperature of z-scores: the paper has T = 2 and a weight of 9.

Classes that a model masks with -inf stay so and are left out of its mean and deviation. Several teachers are fused
first, at the inner loss's temperature, and the fused one is standardised.

Config: objective.kd.term = "standardized(loss=kd(temperature=2.0))"
When: a student much smaller than its teacher, in classification; around `kd`, `dkd` or any loss of logits.
Checked: published code (logit-standardization-KD) around kd and dkd, in value and gradient.
"""

from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Outputs, Signals, Term
from jaxdistill.losses.term import precise

EPSILON = 1e-7


def z_score(logits: Float[Array, "*batch classes"]) -> Float[Array, "*batch classes"]:
    """(z - mean) / (std + 1e-7) over the classes; 0 where they are all alike."""
    logits = precise(logits)
    has = logits != -jnp.inf
    count = jnp.sum(has, axis=-1, keepdims=True)
    total = jnp.sum(jnp.where(has, logits, 0.0), axis=-1, keepdims=True)
    centred = jnp.where(has, logits, 0.0) - jnp.where(has, total / jnp.maximum(count, 1), 0.0)
    square = jnp.sum(centred**2, axis=-1, keepdims=True) / jnp.maximum(count - 1, 1)
    alike = square == 0  # the gradient of a root at 0 is infinite
    deviation = jnp.where(alike, 0.0, jnp.sqrt(jnp.where(alike, 1.0, square)))
    return jnp.where(has, centred / (deviation + EPSILON), -jnp.inf)


@losses.register
def standardized(loss: Term) -> Term:
    """Another loss, of standardised logits.

    Args:
        loss: such as `kd(temperature=2.0)`.
    """

    def scored(outputs: Outputs) -> Outputs:
        return replace(outputs, logits=z_score(outputs.logits), sparse=None)

    def seen(signals: Signals) -> Signals:
        teacher = None if signals.teacher is None else scored(signals.teacher)
        teachers = tuple(map(scored, signals.teachers))
        return replace(signals, student=scored(signals.student), teachers=teachers, teacher=teacher)

    def apply(params, state, signals, *, key):
        return loss.apply(params, state, seen(signals), key=key)

    return loss._replace(init=lambda key, signals: loss.init(key, seen(signals)), apply=apply, linear=False)
