"""Sobolev training: match the student's and the teacher's gradients in the input, in direction and size.

Czarnecki, Osindero, Jaderberg, Swirszcz and Pascanu, Sobolev Training for Neural Networks, 2017
(arxiv.org/abs/1706.04859), in its stochastic form:

    || J_s^T v - J_t^T v ||^2,  v uniform on the unit sphere over the classes

The mean over v is ||J_s - J_t||^2 / classes, in the Frobenius norm. v is drawn for each row and step, the same for both
networks. The loss is a sum over the input, so it grows with the input's size and depends on its scale. Here pixels lie
between -1 and 1; with pixels from 0 to 255 the same networks would have a loss 16,000 times smaller. The weight
therefore needs a sweep. The weight of `jacobian` does not, because it compares only directions. For the cost of a step
and its requirements see `jacobian`.

Config: objective.sobolev.term = "sobolev"
When: the student must match the size of the teacher's logits too, as with `logit_mse`; otherwise use `jacobian`.
Checked: by hand, against float64 numpy; the mean over v is the squared distance of the Jacobians.
Experiment: `experiments/jacobian`.
"""

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.gradients.derivatives import broadcast_to_tokens, input_gradients
from jaxdistill.losses.term import precise, stateless


def squared_distance(student: Float[Array, "*rows dims"], teacher: Float[Array, "*rows dims"]) -> Float[Array, "*rows"]:
    """Compute ||s - t||^2."""
    return jnp.sum((precise(student) - precise(teacher)) ** 2, axis=-1)


@losses.register
def sobolev(teacher: int = 0) -> Term:
    """Match the gradients in the input, in direction and size, along random mixtures of the logits.

    Args:
        teacher: number of the teacher. The gradient of fused teachers is not the mean of their gradients, so one
            teacher is chosen.

    Raises:
        ValueError: when applied, the inputs of student and teacher differ in shape.
    """

    def values(signals: Signals) -> Array:
        return broadcast_to_tokens(squared_distance(*input_gradients(signals, teacher)), signals.mask)

    return stateless(values, local=False, needs=frozenset({"teacher", "input_gradients"}))
