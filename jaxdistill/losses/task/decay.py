"""Weight decay of the student's kernels, towards zero or towards the teacher's kernels (L2-SP).

    0.5 sum_k ||w_k - a_k||^2, with a = 0 or the teacher's kernel of the same name

The sum is over the student's kernels w_k. Towards the teacher this is L2-SP: Li, Grandvalet and Davoine, 2018
(arxiv.org/abs/1802.01483).

Config: objective.decay.term = "decay(towards='teacher')"; objective.decay.weight = 0.0001
When: the student starts as a copy or a part of its teacher and has little data. Towards zero, the decay is part of the
loss, unlike the decay of adamw.
Checked: against values computed by hand, over the kernels that student and teacher share.
"""

from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.term import precise, select_teacher, stateless


def half_squared_distance(
    params: Mapping[str, Float[Array, "..."]], anchors: Mapping[str, Float[Array, "..."]]
) -> Float[Array, ""]:
    """Compute 0.5 sum_k ||w_k - a_k||^2 over the arrays w_k of `params`.

    Args:
        params: arrays w_k by name.
        anchors: arrays a_k by name; it must have every name of `params`.
    """
    squares = [jnp.sum(precise(params[name] - anchors[name]) ** 2) for name in params]
    return 0.5 * jnp.sum(jnp.stack(squares))


@losses.register
def decay(towards: Literal["zero", "teacher"] = "zero", teacher: int = 0) -> Term:
    """Build the loss term 0.5 sum_k ||w_k - a_k||^2 over the student's kernels w_k (weight decay).

    Biases and normalisation scales are left out.

    Args:
        towards: a_k: "zero", or "teacher", the teacher's kernel of the same name. With "teacher", the sum is over the
            kernels that have the same name and shape in both models.
        teacher: index of the teacher for `towards="teacher"`, in the order of the config.

    Raises:
        ValueError: when the loss is computed with `towards="teacher"`, student and teacher share no kernel.
    """

    def values(signals: Signals) -> Array:
        kernels = {name: w for name, w in signals.params["student"].items() if name.endswith("kernel")}
        if towards == "zero":
            return half_squared_distance(kernels, {name: jnp.zeros((), w.dtype) for name, w in kernels.items()})
        anchors = select_teacher(signals.params["teachers"], teacher)
        shared = {name: w for name, w in kernels.items() if name in anchors and anchors[name].shape == w.shape}
        if not shared:
            raise ValueError("student and teacher share no kernel of the same name and shape; set towards='zero'")
        return half_squared_distance(shared, anchors)

    return stateless(values, local=False, needs=frozenset({"teacher"} if towards == "teacher" else ()))
