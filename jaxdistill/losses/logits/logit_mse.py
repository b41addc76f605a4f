"""Logit matching: mean squared error between the logits of student and teacher.

Ba and Caruana, Do Deep Nets Really Need to be Deep?, 2014 (arxiv.org/abs/1312.6184). With the student's logits s_c and
the teacher's logits t_c, over the classes c:

    mean_c (s_c - t_c)^2

As T grows, the loss `kd` tends to half of this loss, computed from logits minus their mean over the classes.

Config: objective.logit_mse.term = "logit_mse"
When: the student can follow its teacher closely. There is no temperature to tune.
Checked: against values computed by hand, including a masked class.
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
    """Compute `mean((student - teacher)**2)` over the classes, without classes whose teacher logit is -inf."""
    student, teacher = precise(student), precise(teacher)
    unmasked = teacher != -jnp.inf  # not `isfinite`, which would hide a NaN of the teacher
    difference = jnp.where(unmasked, student, 0.0) - jnp.where(unmasked, teacher, 0.0)
    return jnp.sum(difference**2, axis=-1) / jnp.maximum(jnp.sum(unmasked, axis=-1), 1)


@losses.register
def logit_mse() -> Term:
    """Build the logit matching loss term `mean((student - teacher)**2)` of logits over the classes, per row or token.

    Several teachers are first combined into one by the config's fusion, such as `average()`.
    """

    def values(signals: Signals) -> Array:
        return mean_squared_error(signals.student.logits, signals.teacher.logits)

    return stateless(values, needs=frozenset({"teacher"}))
