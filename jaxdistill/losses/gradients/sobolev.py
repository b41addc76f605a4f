"""Sobolev training: match the student's and the teacher's gradients in the input, in direction and size.

Czarnecki, Osindero, Jaderberg, Swirszcz and Pascanu, Sobolev Training for Neural Networks, 2017
(arxiv.org/abs/1706.04859), in its stochastic form:

    || J_s^T v - J_t^T v ||^2,  v uniform on the unit sphere over the classes

J_s and J_t are the Jacobians of the logits of student and teacher in the input, so J^T v is the gradient of the sum of
the logits weighted by v. The mean over v is ||J_s - J_t||^2 / classes, in the Frobenius norm. v is drawn for each
example and step, the same for both networks. The loss is a sum over the input, so it grows with the input's size and
depends on its scale. Here pixels lie between -1 and 1; with pixels from 0 to 255 the same networks would have a loss
16,000 times smaller. The loss weight therefore needs a sweep. The weight of `jacobian` does not, because that loss
compares only directions. The cost of a step and the requirements on models are those of `jacobian`.

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
    """Compute `sum((student - teacher)**2)` over the last axis."""
    return jnp.sum((precise(student) - precise(teacher)) ** 2, axis=-1)


@losses.register
def sobolev(teacher: int = 0) -> Term:
    """Build the Sobolev training loss term ||g_s - g_t||^2, for gradients g with respect to the input.

    g_s is the gradient of sum_c v_c logits_c of the student, g_t that of the teacher. The weights v of the classes are
    random, new for each example and step, and the same for both models.

    Args:
        teacher: index of the teacher, in the order of the config. Only one teacher is used, because the gradient of a
            fusion of teachers is not the mean of the teachers' gradients.

    Raises:
        ValueError: when the loss is computed, the inputs of student and teacher differ in shape.
    """

    def values(signals: Signals) -> Array:
        return broadcast_to_tokens(squared_distance(*input_gradients(signals, teacher)), signals.mask)

    return stateless(values, local=False, needs=frozenset({"teacher", "input_gradients"}))
