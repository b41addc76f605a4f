"""Gated hints: match hidden states along several layer pairs, with a weight for each pair and row from a learned gate.

    sum over paths r of w_r(x) * mean (projector_r(h_s[i_r]) - h_t[j_r])^2,    w(x) from the gate, summing to 1

A path is a pair of a student layer i_r and a teacher layer j_r. The loss is `hidden` with a weight for each path and
row in place of the mean. SemCKD (`semckd.py`) trains such weights by this very loss, which makes a path to an
uninformative layer the cheapest. Here the gate (`fusion/gate.py` with `paths=`) is trained otherwise: by how well a
linear probe predicts the labels from the teacher's layer of each path (`steps/routing.py` with `probes=`), or by how
much one update of the student improves the loss on a quiz (`by='quiz'`).

Own: the layer pairs are those of FitNets and SemCKD; weighting them by probes or a quiz is our method.

Config: objective.hints.term = "routed_hidden(layers=((1, 2), (1, 4)))", with
fusion = "gate(paths=2)" and step = "routing(probes=(2, 4))"
When: it is not known which layers of the teacher are worth learning from.
Checked: equal weights give `hidden`; in experiments/routing a dead layer gets none of the weight.
"""

from typing import Literal

import jax.numpy as jnp

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.hidden.hidden import DISTANCES
from jaxdistill.losses.hidden.layers import LayerMap, average_if_extents_differ, check_layers, paired_states
from jaxdistill.losses.hidden.projectors import ProjectorKind, init_each, project_each
from jaxdistill.losses.term import mean_over_positions


@losses.register
def routed_hidden(
    layers: LayerMap,
    projector: ProjectorKind = "linear",
    distance: Literal["mse", "cosine"] = "mse",
    teacher: int = 0,
) -> Term:
    """Compare the hidden states of each layer pair, weighted for each row by the gate.

    Args:
        layers: the layer map; its pairs are the paths, in the order of the gate. See `losses/hidden/layers.py`.
        projector: "linear", "mlp" or "conv", learned for each path; "none" compares the states directly and needs equal
            widths.
        distance: "mse" or "cosine".
        teacher: index of the teacher.

    Raises:
        ValueError: when the term is applied: the fusion computes no path weights, or another number of them.
    """
    check_layers(layers)

    def pairs(signals: Signals) -> list[tuple[Array, Array]]:
        return [average_if_extents_differ(*pair, signals) for pair in paired_states(signals, layers, teacher)]

    def init(key, signals):
        return init_each(projector, key, pairs(signals), signals.mask.ndim), {}

    def apply(params, state, signals, *, key):
        distances = [DISTANCES[distance](*pair) for pair in project_each(projector, params, pairs(signals))]
        values = jnp.stack([mean_over_positions(value, signals.batch, signals.mask.ndim) for value in distances])
        routes = None if signals.teacher is None else signals.teacher.routes
        if routes is None or len(routes) != len(values):
            weighted = "none" if routes is None else f"{len(routes)}"
            problem = f"layers names {len(values)} paths, and the fusion computes weights for {weighted}"
            raise ValueError(f"{problem}; use gate(paths={len(values)})")
        return jnp.sum(routes * values, axis=0), state

    return Term(init, apply, needs=frozenset({"teacher"}))
