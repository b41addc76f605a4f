"""Hints weighed by Fisher information: hidden states match where the teacher's loss feels a difference.

Li et al., BRECQ, 2021 (arxiv.org/abs/2102.05426) reconstruct the blocks of a network under the diagonal of the Fisher
information of their outputs, which are the squared gradients of the task loss; the block that learns is there a
quantised one, here a student's:

    mean over layer pairs of mean_c F_c (h_s W - h_t)_c^2,  F = g^2 / mean(g^2),  g = d CE(label) / d h_t

To second order, sum_c g_c^2 d_c^2 is what a difference d of a row's hidden state costs the teacher (Gauss-Newton, with
the row's own gradient for the expectation, and the diagonal for the matrix). Theis et al., Faster Gaze Prediction With
Dense Networks and Fisher Pruning, 2018 (arxiv.org/abs/1801.05787) choose the units of a student by the same numbers.

F is divided by its mean over the rows that count, positions and widths, which is ours: the weight then means what it
means for `hidden`, whatever the teacher's confidence. A teacher that is sure of nearly all rows puts nearly all weight
on the few others: look at labels that it has not learned by heart. The published code adds 1 to |g|, which evens that
out; here `hidden` beside it does.

Config: objective.fisher_hints.term = "fisher_hints(layers='uniform')"
When: a student too narrow for all that its teacher's layers hold, and measured: on 100 digits it gained no more than
`hidden` (`experiments/jacobian`).
Checked: by hand, by plain float64 numpy; with equal gradients it is `hidden`.
Experiment: `experiments/jacobian`.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.collectives import psum
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.hidden.hidden import hidden
from jaxdistill.losses.hidden.layers import LayerMap, aligned, layer_pairs
from jaxdistill.losses.hidden.projectors import project_each
from jaxdistill.losses.term import extent_mean, one_of, precise


def weighted_distance(
    student: Float[Array, "*rows width"], teacher: Float[Array, "*rows width"], fisher: Float[Array, "*rows width"]
) -> Float[Array, "*rows"]:
    """Mean over the width of F (s - t)^2."""
    return jnp.mean(precise(fisher) * (precise(student) - precise(teacher)) ** 2, axis=-1)


@losses.register
def fisher_hints(
    layers: LayerMap = "uniform", projector: Literal["linear", "none"] = "linear", teacher: int = 0
) -> Term:
    """Hidden states of chosen layers, each unit by how much the teacher's task loss depends on it.

    Where the states' extents (positions, tokens) differ, states and gradients are averaged over them first. Padding
    counts nothing.

    Args:
        layers: the layer map, see `losses/layers.py`.
        projector: "linear" learns a kernel per pair; "none" compares as they are and needs equal widths.
        teacher: which teacher.

    Raises:
        ValueError: when it is applied, widths differ and projector is "none", or a layer does not exist.
    """
    hints = hidden(layers, projector, teacher=teacher)  # the same projectors

    def apply(params, state, signals, *, key):
        students, target, values = signals.student.hidden_states, one_of(signals.teachers, teacher), []
        numbers = layer_pairs(layers, len(students), len(target.hidden_states))
        pairs = [aligned(students[i], target.hidden_states[j], signals) for i, j in numbers]
        slopes = [aligned(students[i], target.state_gradients[j], signals)[1] for i, j in numbers]
        for pair, slope in zip(project_each(projector, params, pairs), slopes, strict=True):
            distance = weighted_distance(*pair, _fisher(precise(slope), signals))
            values.append(extent_mean(distance, signals.batch, signals.mask.ndim))
        return jnp.mean(jnp.stack(values), axis=0), state

    return Term(hints.init, apply, local=False, needs=frozenset({"teacher", "state_gradients"}))


def _fisher(gradient: Array, signals: Signals) -> Array:
    """Squared gradients with mean 1 over the rows of the global batch that count."""
    square, counts = gradient**2, signals.mask != 0
    rows = extent_mean(jnp.mean(square, axis=-1), signals.batch, signals.mask.ndim)
    total, count = psum((jnp.sum(jnp.where(counts, rows, 0)), jnp.sum(counts)))
    mean = total / jnp.maximum(count, 1)
    return jnp.where(mean == 0, 0.0, square / jnp.where(mean == 0, 1.0, mean))
