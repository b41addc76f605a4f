"""Hidden states of several teachers, unlike in width: each has a projector of its own, and its weight in the fusion.

Park and Kwak, FEED, 2019 (arxiv.org/abs/1909.10754), with equal weights; Zhang et al., CA-MKD, 2022
(arxiv.org/abs/2201.00007), with those of each row:

    sum over teachers k of w_k(x) * mean over layer pairs of mean (projector_k(h_s) - h_k)^2

The student is projected into each teacher's space: teachers that were projected into one space, and learned it, would
find one where they all say nothing. What weighs nothing is not heard, NaN included. FEED's projector has three
convolutions, and compares unit vectors: `distance='cosine'` is half the square of their difference.

Config: objective.hints.term = "fused_hidden(layers='last')", with fusion = "confidence()"
When: several teachers, of which not all are right everywhere; their logits agree more than what leads to them.
Checked: by hand, with weights of each row; one teacher is `hidden`; a teacher that is absent; permuted teachers.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.hidden.hidden import DISTANCES
from jaxdistill.losses.hidden.layers import LayerMap, aligned, check_layers, paired_states
from jaxdistill.losses.hidden.projectors import Kind, init_each, project_each
from jaxdistill.losses.term import extent_mean


@losses.register
def fused_hidden(
    layers: LayerMap = "last", projector: Kind = "linear", distance: Literal["mse", "cosine"] = "mse"
) -> Term:
    """Hidden states of all teachers, each row by the weights that the fusion gives them.

    Args:
        layers: the layer map of each teacher, see `losses/layers.py`.
        projector: "linear" or "mlp", learned for each pair of each teacher; "none" needs equal widths.
        distance: "mse" or "cosine".

    Raises:
        ValueError: when it is applied, the fusion weighs no teachers.
    """
    check_layers(layers)

    def pairs(signals: Signals, teacher: int) -> list[tuple[Array, Array]]:
        return [aligned(*pair, signals) for pair in paired_states(signals, layers, teacher)]

    def init(key, signals):
        draw = lambda k: init_each(projector, jax.random.fold_in(key, k), pairs(signals, k), signals.mask.ndim)
        each = [draw(teacher) for teacher in range(len(signals.teachers))]
        return {f"{teacher}/{name}": x for teacher, own in enumerate(each) for name, x in own.items()}, {}

    def one(params, signals: Signals, teacher: int, weights: Array) -> Array:
        heard = lambda x: jnp.where((weights > 0).reshape(weights.shape + (1,) * (x.ndim - weights.ndim)), x, 0)
        own = {name.partition("/")[2]: x for name, x in params.items() if name.startswith(f"{teacher}/")}
        # selected before the distance: in its gradient a NaN would survive a weight of 0
        found = [(student, heard(state)) for student, state in pairs(signals, teacher)]
        values = [DISTANCES[distance](*pair) for pair in project_each(projector, own, found)]
        means = [extent_mean(value, signals.batch, signals.mask.ndim) for value in values]
        return weights * jnp.mean(jnp.stack(means), axis=0)

    def apply(params, state, signals, *, key):
        weights = None if signals.teacher is None else signals.teacher.weights
        if weights is None:
            raise ValueError("this fusion gives teachers no weights; use one that does, such as fusion='average()'")
        return sum(one(params, signals, number, own) for number, own in enumerate(weights)), state

    return Term(init, apply, needs=frozenset({"teacher"}))
