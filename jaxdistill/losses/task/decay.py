"""Weight decay of the student's kernels, towards zero or towards the teacher's kernels (L2-SP).

    0.5 sum_k ||w_k - a_k||^2, with a = 0 or the teacher's kernel of the same name

Towards the teacher this is L2-SP: Li, Grandvalet and Davoine, 2018 (arxiv.org/abs/1802.01483).

Config: objective.decay.term = "decay(towards='teacher')"; objective.decay.weight = 0.0001
When: the student starts as a copy or a part of its teacher and has little data. Towards zero, the decay is part of the
loss, unlike the decay of adamw.
Checked: by hand, over the kernels that student and teacher share.
"""

from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.term import precise, select_teacher, stateless


def half_squared_norm(
    params: Mapping[str, Float[Array, "..."]], anchors: Mapping[str, Float[Array, "..."]]
) -> Float[Array, ""]:
    """Compute 0.5 sum ||w - a||^2 over the names of `params`; `anchors` holds a for each of them."""
    squares = [jnp.sum(precise(params[name] - anchors[name]) ** 2) for name in params]
    return 0.5 * jnp.sum(jnp.stack(squares))


@losses.register
def decay(towards: Literal["zero", "teacher"] = "zero", teacher: int = 0) -> Term:
    """Compute half the squared distance of the student's kernels to their anchors; biases and scales do not decay.

    Args:
        towards: "zero", or "teacher" for the kernels that student and teacher share by name and shape.
        teacher: number of the teacher.

    Raises:
        ValueError: when applied, student and teacher share no kernel.
    """

    def values(signals: Signals) -> Array:
        kernels = {name: w for name, w in signals.params["student"].items() if name.endswith("kernel")}
        if towards == "zero":
            return half_squared_norm(kernels, {name: jnp.zeros((), w.dtype) for name, w in kernels.items()})
        anchors = select_teacher(signals.params["teachers"], teacher)
        shared = {name: w for name, w in kernels.items() if name in anchors and anchors[name].shape == w.shape}
        if not shared:
            raise ValueError("student and teacher share no kernel of the same name and shape; set towards='zero'")
        return half_squared_norm(shared, anchors)

    return stateless(values, local=False, needs=frozenset({"teacher"} if towards == "teacher" else ()))
