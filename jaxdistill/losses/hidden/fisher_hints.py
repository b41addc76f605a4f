"""Fisher-weighted hints: match hidden states, each unit weighted by the teacher's squared task-loss gradient.

Li et al., BRECQ, 2021 (arxiv.org/abs/2102.05426) reconstruct the blocks of a network, weighted by the diagonal Fisher
information of the block outputs, which is the squared gradient of the task loss. BRECQ trains a quantised block this
way; here the student is trained:

    mean over layer pairs of mean_c F_c (h_s W - h_t)_c^2,  F = g^2 / mean(g^2),  g = d CE(label) / d h_t

To second order, sum_c g_c^2 d_c^2 is what a change d of a row's hidden state costs the teacher. This is a Gauss-Newton
estimate with the row's own gradient in place of the expectation, and the diagonal in place of the matrix. Theis et
al., Faster Gaze Prediction With Dense Networks and Fisher Pruning, 2018 (arxiv.org/abs/1801.05787) choose the units of
a student by the same quantity.

Division by the mean of g^2 over all valid rows, positions and channels is our addition: the weight of this term then
means the same as for `hidden`, whatever the teacher's confidence. A teacher that is confident on nearly all rows puts
nearly all weight on the few others, so use labels that it has not memorised. The published code adds 1 to |g|, which
evens the weights out; here a `hidden` term beside this one does.

Config: objective.fisher_hints.term = "fisher_hints(layers='uniform')"
When: the student is too narrow to reproduce all of its teacher's hidden states. On 100 labelled digits it gained no
more than `hidden` (`experiments/jacobian`).
Checked: by hand and against plain float64 numpy; with equal gradients it equals `hidden`.
Experiment: `experiments/jacobian`.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.collectives import psum
from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.hidden.hidden import hidden
from jaxdistill.losses.hidden.layers import LayerMap, average_if_extents_differ, chosen_pairs
from jaxdistill.losses.hidden.projectors import project_each
from jaxdistill.losses.term import mean_over_positions, precise, select_teacher


def weighted_distance(
    student: Float[Array, "*rows width"], teacher: Float[Array, "*rows width"], fisher: Float[Array, "*rows width"]
) -> Float[Array, "*rows"]:
    """Compute the mean of F (s - t)^2 over the width."""
    return jnp.mean(precise(fisher) * (precise(student) - precise(teacher)) ** 2, axis=-1)


@losses.register
def fisher_hints(
    layers: LayerMap = "uniform", projector: Literal["linear", "none"] = "linear", teacher: int = 0
) -> Term:
    """Compare hidden states of selected layers, each unit weighted by the teacher's squared task-loss gradient.

    If student and teacher differ in extent (image size or sequence length), states and gradients are averaged over it
    first. Padding is ignored.

    Args:
        layers: the layer map; see `losses/hidden/layers.py`.
        projector: "linear" learns a kernel for each pair; "none" compares the states directly and needs equal widths.
        teacher: index of the teacher.

    Raises:
        ValueError: when the term is applied: the widths differ and projector is "none", or a layer does not exist.
    """
    hints = hidden(layers, projector, teacher=teacher)  # the same projectors

    def apply(params, state, signals, *, key):
        students, target, values = signals.student.hidden_states, select_teacher(signals.teachers, teacher), []
        indices = chosen_pairs(signals, layers, teacher)
        align = average_if_extents_differ
        pairs = [align(students[i], target.hidden_states[j], signals) for i, j in indices]
        gradients = [align(students[i], target.state_gradients[j], signals)[1] for i, j in indices]
        for pair, gradient in zip(project_each(projector, params, pairs), gradients, strict=True):
            distance = weighted_distance(*pair, _fisher(precise(gradient), signals))
            values.append(mean_over_positions(distance, signals.batch, signals.mask.ndim))
        return jnp.mean(jnp.stack(values), axis=0), state

    return Term(hints.init, apply, local=False, needs=frozenset({"teacher", "state_gradients"}))


def _fisher(gradient: Array, signals: Signals) -> Array:
    """Square the gradients and divide by their mean over the valid rows of the global batch; 0 where that mean is 0."""
    square, valid = gradient**2, signals.mask != 0
    rows = mean_over_positions(jnp.mean(square, axis=-1), signals.batch, signals.mask.ndim)
    total, count = psum((jnp.sum(jnp.where(valid, rows, 0)), jnp.sum(valid)))
    mean = total / jnp.maximum(count, 1)
    return jnp.where(mean == 0, 0.0, square / jnp.where(mean == 0, 1.0, mean))
