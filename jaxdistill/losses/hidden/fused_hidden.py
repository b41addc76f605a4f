"""Multi-teacher hints: one projector per teacher, each teacher's hint loss weighted by its share in the fusion.

Park and Kwak, FEED, 2019 (arxiv.org/abs/1909.10754), use equal weights; Zhang et al., CA-MKD, 2022
(arxiv.org/abs/2201.00007), use a weight for each row:

    sum over teachers k of w_k(x) * mean over layer pairs of mean (projector_k(h_s) - h_k)^2

The teachers may differ in width. The student is projected into each teacher's space. If the teachers were instead
projected into one common space by learned projectors, these could all collapse to a constant. Where a teacher has
weight 0 its hidden states are ignored, even NaN. FEED's projector has three convolutions, and compares unit vectors:
`distance='cosine'` is half the square of their difference.

Config: objective.hints.term = "fused_hidden(layers='last')", with fusion = "confidence()"
When: there are several teachers, not all of them right on every input. Their hidden states agree less than their
    logits do.
Checked: by hand, with a weight for each row; equal to `hidden` with one teacher; with absent and permuted teachers.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.hidden.hidden import DISTANCES
from jaxdistill.losses.hidden.layers import LayerMap, average_if_extents_differ, check_layers, paired_states
from jaxdistill.losses.hidden.projectors import ProjectorKind, init_each, project_each
from jaxdistill.losses.term import mean_over_positions


@losses.register
def fused_hidden(
    layers: LayerMap = "last", projector: ProjectorKind = "linear", distance: Literal["mse", "cosine"] = "mse"
) -> Term:
    """Compare the student's hidden states with those of all teachers, weighted for each row by the fusion.

    Args:
        layers: the layer map of each teacher; see `losses/hidden/layers.py`.
        projector: "linear", "mlp" or "conv", learned for each pair of each teacher; "none" needs equal widths.
        distance: "mse" or "cosine".

    Raises:
        ValueError: when the term is applied: the fusion computes no teacher weights.
    """
    check_layers(layers)

    def pairs(signals: Signals, teacher: int) -> list[tuple[Array, Array]]:
        return [average_if_extents_differ(*pair, signals) for pair in paired_states(signals, layers, teacher)]

    def init(key, signals):
        draw = lambda k: init_each(projector, jax.random.fold_in(key, k), pairs(signals, k), signals.mask.ndim)
        params = [draw(teacher) for teacher in range(len(signals.teachers))]
        return {
            f"{teacher}/{name}": x for teacher, projectors in enumerate(params) for name, x in projectors.items()
        }, {}

    def teacher_values(params, signals: Signals, teacher: int, weights: Array) -> Array:
        projectors = {name.partition("/")[2]: x for name, x in params.items() if name.startswith(f"{teacher}/")}
        used = lambda x: jnp.where((weights > 0).reshape(weights.shape + (1,) * (x.ndim - weights.ndim)), x, 0)
        # selected before the distance: in its gradient a NaN would survive a weight of 0
        masked_pairs = [(student, used(target)) for student, target in pairs(signals, teacher)]
        values = [DISTANCES[distance](*pair) for pair in project_each(projector, projectors, masked_pairs)]
        means = [mean_over_positions(value, signals.batch, signals.mask.ndim) for value in values]
        return weights * jnp.mean(jnp.stack(means), axis=0)

    def apply(params, state, signals, *, key):
        weights = None if signals.teacher is None else signals.teacher.weights
        if weights is None:
            raise ValueError("this fusion computes no teacher weights; use one that does, such as fusion='average()'")
        return sum(teacher_values(params, signals, teacher, share) for teacher, share in enumerate(weights)), state

    return Term(init, apply, needs=frozenset({"teacher"}))
