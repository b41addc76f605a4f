"""Hints along paths that a gate chooses: which of the teacher's layers a row learns from.

    sum over paths r of w_r(x) * mean (projector_r(h_s[i_r]) - h_t[j_r])^2,    w(x) from the gate, summing to 1

As `hidden`, but with a weight for each path and row in place of the mean. SemCKD (`semckd.py`) learns such weights by
this very loss, and a path to a layer that says nothing is then the cheapest: here the gate (`fusion/gate.py` with
`paths=`) is trained by what a linear probe reads of the labels in the teacher's layer of each path (`steps/routing.py`
with `probes=`), or by what one update of the student gains on a quiz (`by='quiz'`).

Own: the pairs are those of FitNets and SemCKD, that probes or a quiz weigh them is ours.

Config: objective.hints.term = "routed_hidden(layers=((1, 2), (1, 4)))", with
fusion = "gate(paths=2)" and step = "routing(probes=(2, 4))"
When: it is not known which layers of the teacher are worth learning from.
Checked: equal weights are `hidden`, by law; a dead layer gets none of the weight in experiments/routing.
"""

from typing import Literal

import jax.numpy as jnp

from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.hidden.hidden import DISTANCES
from jaxdistill.losses.hidden.layers import LayerMap, aligned, check_layers, paired_states
from jaxdistill.losses.hidden.projectors import Kind, init_each, project_each
from jaxdistill.losses.term import extent_mean


@losses.register
def routed_hidden(
    layers: LayerMap,
    projector: Kind = "linear",
    distance: Literal["mse", "cosine"] = "mse",
    teacher: int = 0,
) -> Term:
    """Hidden states of the pairs of a layer map, each row by its own weights of these paths.

    Args:
        layers: the layer map, whose pairs are the paths in the gate's order; see `losses/layers.py`.
        projector: "linear" or "mlp", learned for each path; "none" compares as they are and needs equal widths.
        distance: "mse" or "cosine".
        teacher: which teacher.

    Raises:
        ValueError: when it is applied, the fusion weighs no paths, or another number of them.
    """
    check_layers(layers)

    def pairs(signals: Signals) -> list[tuple[Array, Array]]:
        return [aligned(*pair, signals) for pair in paired_states(signals, layers, teacher)]

    def init(key, signals):
        return init_each(projector, key, pairs(signals), signals.mask.ndim), {}

    def apply(params, state, signals, *, key):
        found = [DISTANCES[distance](*pair) for pair in project_each(projector, params, pairs(signals))]
        values = jnp.stack([extent_mean(value, signals.batch, signals.mask.ndim) for value in found])
        routes = None if signals.teacher is None else signals.teacher.routes
        if routes is None or len(routes) != len(values):
            weighed = "no paths" if routes is None else f"{len(routes)} paths"
            raise ValueError(
                f"{len(values)} paths are named and the fusion weighs {weighed}; use gate(paths={len(values)})"
            )
        return jnp.sum(routes * values, axis=0), state

    return Term(init, apply, needs=frozenset({"teacher"}))
