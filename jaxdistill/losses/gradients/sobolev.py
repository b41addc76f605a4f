"""Sobolev training: the gradients of student and teacher in the input, in direction and size.

Czarnecki, Osindero, Jaderberg, Swirszcz and Pascanu, Sobolev Training for Neural Networks, 2017
(arxiv.org/abs/1706.04859), in its stochastic form:

    || J_s^T v - J_t^T v ||^2,  v uniform on the unit sphere over the classes

Over v, its mean is ||J_s - J_t||^2 / classes, in the Frobenius norm. v is drawn for each row and step, the same for
both networks. The sum over the input grows with its size, and the input is an image with numbers from -1 to 1: on
pixels from 0 to 255 the same networks would have 16,000 times less, which is why the weight deserves a sweep where
`jacobian`, which compares directions alone, does not. What a step costs and needs is said there.

Config: objective.sobolev.term = "sobolev"
When: the student's logits shall have the teacher's size too (its logits are matched, as by `logit_mse`); else
`jacobian`.
Checked: by hand, by plain float64 numpy; its mean over v is the squared distance of the Jacobians.
Experiment: `experiments/jacobian`.
"""

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.gradients.derivatives import for_each_token, input_gradients
from jaxdistill.losses.term import precise, stateless


def squared_norm(student: Float[Array, "*rows dims"], teacher: Float[Array, "*rows dims"]) -> Float[Array, "*rows"]:
    """||s - t||^2."""
    return jnp.sum((precise(student) - precise(teacher)) ** 2, axis=-1)


@losses.register
def sobolev(teacher: int = 0) -> Term:
    """Gradients in the input along random mixtures of the logits, in direction and size.

    Args:
        teacher: which teacher. Gradients of a mean of teachers are not the mean of theirs, so one is chosen.

    Raises:
        ValueError: when it is applied, the inputs of student and teacher have unlike shapes.
    """

    def values(signals: Signals) -> Array:
        return for_each_token(squared_norm(*input_gradients(signals, teacher)), signals.mask)

    return stateless(values, local=False, needs=frozenset({"teacher", "input_gradients"}))
