"""Logit matching: mean squared error between the logits of student and teacher.

Ba and Caruana, Do Deep Nets Really Need to be Deep?, 2014 (arxiv.org/abs/1312.6184).

    mean_c (s_c - t_c)^2

This is the limit of soft targets as T grows, up to the mean of each row.

Config: objective.logit_mse.term = "logit_mse"
When: the student can follow its teacher closely. There is no temperature to tune.
Checked: by hand, including a masked class.
"""

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.term import precise, stateless


def mean_squared_error(
    student: Float[Array, "*batch classes"], teacher: Float[Array, "*batch classes"]
) -> Float[Array, "*batch"]:
    """Average the squared difference over the classes, without those whose teacher logit is -inf."""
    student, teacher = precise(student), precise(teacher)
    unmasked = teacher != -jnp.inf  # not `isfinite`, which would hide a NaN of the teacher
    difference = jnp.where(unmasked, student, 0.0) - jnp.where(unmasked, teacher, 0.0)
    return jnp.sum(difference**2, axis=-1) / jnp.maximum(jnp.sum(unmasked, axis=-1), 1)


@losses.register
def logit_mse() -> Term:
    """Compute the mean squared error between the logits of the student and of the fused teacher."""

    def values(signals: Signals) -> Array:
        return mean_squared_error(signals.student.logits, signals.teacher.logits)

    return stateless(values, needs=frozenset({"teacher"}))
