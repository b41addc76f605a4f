"""Fisher-weighted hints: match hidden states, each unit weighted by the teacher's squared task-loss gradient.

Li et al., BRECQ, 2021 (arxiv.org/abs/2102.05426) reconstruct the blocks of a network, weighted by the diagonal Fisher
information of the block outputs, which is the squared gradient of the task loss. BRECQ trains a quantised block this
way; here the student is trained:

    mean over layer pairs of mean_c F_c (h_s W - h_t)_c^2,  F = g^2 / mean(g^2),  g = d CE(label) / d h_t

c is a unit (channel) of the teacher's layer, W a learned projector, and CE the teacher's cross-entropy with the label.
If the teacher's hidden state of one example changes by d, then sum_c g_c^2 d_c^2 estimates, up to a constant factor,
the second-order increase of the teacher's loss. This is a Gauss-Newton estimate with the example's own gradient in
place of the expectation, and the diagonal in place of the matrix. Theis et al., Faster Gaze Prediction With
Dense Networks and Fisher Pruning, 2018 (arxiv.org/abs/1801.05787) choose the units of a student by the same quantity.

Division by the mean of g^2 over all valid examples, positions and channels is our addition: a loss weight then means
the same as for `hidden`, whatever the teacher's confidence. If the teacher is confident on nearly all examples, the few
others get nearly all of the weight, so use labels that the teacher has not memorised. The published code adds 1 to |g|,
which makes the weights more even; here a `hidden` term beside this one has that effect.

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
from jaxdistill.core.interfaces import Term, Values
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Key, Params, Signals, State
from jaxdistill.losses.hidden.hidden import hidden
from jaxdistill.losses.hidden.layers import LayerMap, average_if_extents_differ, chosen_pairs
from jaxdistill.losses.hidden.projectors import project_each
from jaxdistill.losses.term import mean_over_positions, precise, select_teacher


def weighted_distance(
    student: Float[Array, "*rows width"], teacher: Float[Array, "*rows width"], fisher: Float[Array, "*rows width"]
) -> Float[Array, "*rows"]:
    """Compute `mean(fisher * (student - teacher)**2)` over the width, the last axis."""
    return jnp.mean(precise(fisher) * (precise(student) - precise(teacher)) ** 2, axis=-1)


@losses.register
def fisher_hints(
    layers: LayerMap = "uniform", projector: Literal["linear", "none"] = "linear", teacher: int = 0
) -> Term:
    """Build the loss term `mean(F * (h_s W - h_t)**2)`: hidden states weighted by the teacher's Fisher information F.

        F = g^2 / mean(g^2),   g = gradient of the teacher's cross-entropy with respect to h_t

    h_s is the hidden state of a student layer, h_t that of the teacher layer paired with it, and W a learned kernel.
    The mean in F is over the global batch, and the loss is the mean over width and layer pairs. If student and teacher
    differ in image size or sequence length, hidden states and gradients are first averaged over their positions.
    Padding tokens are ignored.

    Args:
        layers: which student layer learns from which teacher layer: "uniform", "skip", "last", a range of teacher
            layers such as "6-9", or pairs such as ((1, 2), (2, 4)); see `layer_pairs`.
        projector: "linear" learns W for each layer pair; "none" leaves W out and needs equal widths.
        teacher: index of the teacher, in the order of the config.

    Raises:
        ValueError: `layers` has none of these forms; when the loss is computed, a layer does not exist, or the widths
            differ and the projector is "none".
    """
    hints = hidden(layers, projector, teacher=teacher)  # for its projectors

    def apply(params: Params, state: State, signals: Signals, *, key: Key) -> tuple[Values, State]:
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
    """Compute the weights g^2 / mean(g^2) from the teacher's gradients g; they are 0 if the mean is 0.

    The mean is over the valid examples of the global batch, their positions without padding, and the channels.
    """
    square, valid = gradient**2, signals.mask != 0
    rows = mean_over_positions(jnp.mean(square, axis=-1), signals.batch, signals.mask.ndim)
    total, count = psum((jnp.sum(jnp.where(valid, rows, 0)), jnp.sum(valid)))
    mean = total / jnp.maximum(count, 1)
    return jnp.where(mean == 0, 0.0, square / jnp.where(mean == 0, 1.0, mean))
