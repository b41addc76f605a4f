"""Jacobian matching: match the directions of the student's and the teacher's gradients in the input.

Srinivas and Fleuret, Knowledge Transfer with Jacobian Matching, 2018 (arxiv.org/abs/1803.00443).

    || J_s^T v / ||J_s^T v|| - J_t^T v / ||J_t^T v|| ||^2 = 2 - 2 cos(J_s^T v, J_t^T v)

The paper matches the gradients of single outputs. Here v is a random mixture of all logits, drawn for each row and step
and the same for both networks (Czarnecki et al., Sobolev training, 2017, arxiv.org/abs/1706.04859). Over the steps it
reaches every class, at the price of one backward pass. A teacher with a different v would teach noise.

A step costs about two more backward passes for the student and one for each teacher. The input must have gradients: an
image, or an embedding of the same width in both models. In a sequence with a label for each token, all tokens get the
value of their sequence. Teachers must run live, because a cache holds no gradients. The Jacobian of a ReLU network is
locally constant in the input almost everywhere, but it can still be trained through the weights.

Config: objective.jacobian.term = "jacobian"
When: few images, and a teacher trained on many. On 100 digits a student rose from 79 to 92 % (`experiments/jacobian`).
Checked: by hand, against float64 numpy, and in the experiment, also with a deliberately broken variant.
Experiment: `experiments/jacobian`.
"""

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.gradients.derivatives import broadcast_to_tokens, input_gradients
from jaxdistill.losses.term import precise, stateless, unit


def normalised_distance(
    student: Float[Array, "*rows dims"], teacher: Float[Array, "*rows dims"]
) -> Float[Array, "*rows"]:
    """Compute || s / ||s|| - t / ||t|| ||^2; a zero gradient has no direction and stays a zero vector."""
    return jnp.sum((unit(precise(student)) - unit(precise(teacher))) ** 2, axis=-1)


@losses.register
def jacobian(teacher: int = 0) -> Term:
    """Match the directions of the Jacobians, along random mixtures of the logits.

    Args:
        teacher: number of the teacher. The gradient of fused teachers is not the mean of their gradients, so one
            teacher is chosen.

    Raises:
        ValueError: when applied, the inputs of student and teacher differ in shape.
    """

    def values(signals: Signals) -> Array:
        return broadcast_to_tokens(normalised_distance(*input_gradients(signals, teacher)), signals.mask)

    return stateless(values, local=False, needs=frozenset({"teacher", "input_gradients"}))
