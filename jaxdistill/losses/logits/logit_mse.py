"""Logit matching: Ba and Caruana, Do Deep Nets Really Need to be Deep?, 2014 (arxiv.org/abs/1312.6184).

    mean_c (s_c - t_c)^2

The limit of soft targets as T grows, up to each row's mean.

Config: objective.logit_mse.term = "logit_mse"
When: a student that can follow its teacher closely, and no temperature to search for.
Checked: by hand, a masked class included.
"""

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.term import precise, stateless


def mean_squared_error(
    student: Float[Array, "*batch classes"], teacher: Float[Array, "*batch classes"]
) -> Float[Array, "*batch"]:
    """Mean over the classes of the squared difference.

    Where the teacher's logit is -inf the class is masked: it adds nothing and is not counted.
    """
    student, teacher = precise(student), precise(teacher)
    known = teacher != -jnp.inf  # not `isfinite`: a NaN of the teacher must show
    difference = jnp.where(known, student, 0.0) - jnp.where(known, teacher, 0.0)
    return jnp.sum(difference**2, axis=-1) / jnp.maximum(jnp.sum(known, axis=-1), 1)


@losses.register
def logit_mse() -> Term:
    """Mean squared error between the logits of the student and of the fused teacher."""

    def values(signals: Signals) -> Array:
        return mean_squared_error(signals.student.logits, signals.teacher.logits)

    return stateless(values, needs=frozenset({"teacher"}))
