"""Multi-teacher hints: match the hidden states of all teachers, each weighted by the teacher's weight in the fusion.

Park and Kwak, FEED, 2019 (arxiv.org/abs/1909.10754), use equal weights; Zhang et al., CA-MKD, 2022
(arxiv.org/abs/2201.00007), use a weight for each example x:

    sum over teachers k of w_k(x) * mean over layer pairs of mean (projector_k(h_s) - h_k)^2

w_k(x) comes from the fusion, the rule that combines the teachers into one. The teachers may differ in width: each
has its own projectors, which map the student's hidden states to the teacher's width. If the teachers were instead
mapped to one common space by learned projectors, all projections could collapse to a constant. Where a teacher has
weight 0, its hidden states are ignored, even if they are NaN. FEED's projector has three convolutions. FEED compares
unit vectors; `distance='cosine'` is half the squared difference of unit vectors.

Config: objective.hints.term = "fused_hidden(layers='last')", with fusion = "confidence()"
When: there are several teachers, not all of them right on every input. The teachers' hidden states agree less than
    their logits do.
Checked: by hand, with a weight for each example; equal to `hidden` with one teacher; with absent and permuted teachers.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.interfaces import Term, Values
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Key, Params, Signals, State
from jaxdistill.losses.hidden.hidden import DISTANCES
from jaxdistill.losses.hidden.layers import LayerMap, average_if_extents_differ, check_layers, paired_states
from jaxdistill.losses.hidden.projectors import ProjectorKind, init_each, project_each
from jaxdistill.losses.term import mean_over_positions


@losses.register
def fused_hidden(
    layers: LayerMap = "last", projector: ProjectorKind = "linear", distance: Literal["mse", "cosine"] = "mse"
) -> Term:
    """Build the loss term sum_k w_k d(P_k(h_s), h_k), which compares hidden states of student and all teachers k.

    h_s is the hidden state of a student layer, h_k that of the paired layer of teacher k, and d a distance. The
    projector P_k maps h_s to the width of h_k. w_k is the weight of teacher k for the example; the config's fusion,
    such as `average()`, computes it. The loss is the mean over the layer pairs.

    Args:
        layers: which student layer learns from which teacher layer: "uniform", "skip", "last", a range of teacher
            layers such as "6-9", or pairs such as ((1, 2), (2, 4)); see `layer_pairs`. All teachers have the same
            pairs.
        projector: "linear", "mlp" or "conv" learns P_k for each layer pair; "none" leaves P_k out and needs equal
            widths.
        distance: d(a, b): "mse" is `mean((a - b)**2)` over the width, "cosine" is 1 - cos(a, b).

    Raises:
        ValueError: `layers` has none of these forms; when the loss is computed, the fusion computes no teacher weights.
    """
    check_layers(layers)

    def pairs(signals: Signals, teacher: int) -> list[tuple[Array, Array]]:
        return [average_if_extents_differ(*pair, signals) for pair in paired_states(signals, layers, teacher)]

    def init(key: Key, signals: Signals) -> tuple[Params, State]:
        draw = lambda k: init_each(projector, jax.random.fold_in(key, k), pairs(signals, k), signals.mask.ndim)
        params = [draw(teacher) for teacher in range(len(signals.teachers))]
        return {
            f"{teacher}/{name}": x for teacher, projectors in enumerate(params) for name, x in projectors.items()
        }, {}

    def teacher_values(
        params: Params, signals: Signals, teacher: int, weights: Float[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        projectors = {name.partition("/")[2]: x for name, x in params.items() if name.startswith(f"{teacher}/")}
        used = lambda x: jnp.where((weights > 0).reshape(weights.shape + (1,) * (x.ndim - weights.ndim)), x, 0)
        # selected before the distance: in its gradient a NaN would survive a weight of 0
        masked_pairs = [(student, used(target)) for student, target in pairs(signals, teacher)]
        values = [DISTANCES[distance](*pair) for pair in project_each(projector, projectors, masked_pairs)]
        means = [mean_over_positions(value, signals.batch, signals.mask.ndim) for value in values]
        return weights * jnp.mean(jnp.stack(means), axis=0)

    def apply(params: Params, state: State, signals: Signals, *, key: Key) -> tuple[Values, State]:
        weights = None if signals.teacher is None else signals.teacher.weights
        if weights is None:
            raise ValueError("this fusion computes no teacher weights; use one that does, such as fusion='average()'")
        values = [teacher_values(params, signals, teacher, share) for teacher, share in enumerate(weights)]
        return sum(values[1:], values[0]), state

    return Term(init, apply, needs=frozenset({"teacher"}))
