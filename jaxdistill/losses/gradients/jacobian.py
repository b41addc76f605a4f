"""Jacobian matching: the directions of the gradients of student and teacher in the input.

Srinivas and Fleuret, Knowledge Transfer with Jacobian Matching, 2018 (arxiv.org/abs/1803.00443).

    || J_s^T v / ||J_s^T v|| - J_t^T v / ||J_t^T v|| ||^2 = 2 - 2 cos(J_s^T v, J_t^T v)

They match the gradients of single outputs. Here v is a random mixture of all logits, drawn for each row and step, and
one and the same for both networks (Czarnecki et al., Sobolev training, 2017, arxiv.org/abs/1706.04859): over the steps
every class is reached, at the price of one backward pass. A teacher whose v is another one teaches noise.

A step costs about two more of them for the student and one for each teacher, and needs an input that has gradients: an
image, or an embedding of one width in both. Of a sequence with a label for each token, every token stands for its
sequence. Teachers live: a cache holds no gradients. Networks with ReLU have a Jacobian that is constant almost
everywhere; it is learned through the weights all the same.

Config: objective.jacobian.term = "jacobian"
When: few images, and a teacher that saw many; on 100 digits it took a student from 79 to 92 % (`experiments/jacobian`).
Checked: by hand, by plain float64 numpy, and by its experiment with a broken twin.
Experiment: `experiments/jacobian`.
"""

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.gradients.derivatives import for_each_token, input_gradients
from jaxdistill.losses.term import precise, stateless, unit


def normalised_distance(
    student: Float[Array, "*rows dims"], teacher: Float[Array, "*rows dims"]
) -> Float[Array, "*rows"]:
    """|| s / ||s|| - t / ||t|| ||^2; a gradient of zero has no direction and is compared as the zero that it is."""
    return jnp.sum((unit(precise(student)) - unit(precise(teacher))) ** 2, axis=-1)


@losses.register
def jacobian(teacher: int = 0) -> Term:
    """Jacobian matching along random mixtures of the logits.

    Args:
        teacher: which teacher. Gradients of a mean of teachers are not the mean of theirs, so one is chosen.

    Raises:
        ValueError: when it is applied, the inputs of student and teacher have unlike shapes.
    """

    def values(signals: Signals) -> Array:
        return for_each_token(normalised_distance(*input_gradients(signals, teacher)), signals.mask)

    return stateless(values, local=False, needs=frozenset({"teacher", "input_gradients"}))
