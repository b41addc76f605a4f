"""Gated hints: match hidden states of several layer pairs, weighted for each pair and example by a learned gate.

    sum over paths r of w_r(x) * mean (projector_r(h_s[i_r]) - h_t[j_r])^2,    w(x) from the gate, summing to 1

A path is a pair of a student layer i_r and a teacher layer j_r; h_s[i_r] and h_t[j_r] are the hidden states of these
layers, and x is an example. The loss is `hidden` with a weight for each path and example in place of equal weights.
SemCKD (`semckd.py`) trains such weights by the loss that they weight, so they prefer a path to an uninformative layer,
which is easy to match. Here the gate (`fusion/gate.py` with `paths=`) is trained by another loss: by how well a linear
probe predicts the labels from the teacher layer of each path (`steps/routing.py` with `probes=`), or by how much one
update of the student reduces its cross-entropy on a separate labelled batch, the quiz (`by='quiz'`).

No paper: the layer pairs are those of FitNets and SemCKD; weighting them by probes or a quiz is our method.

Config: objective.hints.term = "routed_hidden(layers=((1, 2), (1, 4)))", with
fusion = "gate(paths=2)" and step = "routing(probes=(2, 4))"
When: it is not known which layers of the teacher are worth learning from.
Checked: equal weights give `hidden`; in experiments/routing a dead layer gets none of the weight.
"""

from typing import Literal

import jax.numpy as jnp

from jaxdistill.core.interfaces import Term, Values
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Key, Params, Signals, State
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
    """Build the loss term sum_r w_r d(P_r(h_s), h_t), for hidden states h of layer pairs r with learned weights w_r.

    h_s is the student's hidden state of pair r, h_t the teacher's, and d a distance. The projector P_r maps h_s to the
    width of h_t. w_r is the weight of pair r for the example, from a gate (learned network): the config's fusion must
    be a gate such as `gate(paths=2)`.

    Args:
        layers: which student layer learns from which teacher layer: "uniform", "skip", "last", a range of teacher
            layers such as "6-9", or pairs such as ((1, 2), (2, 4)); see `layer_pairs`. The gate's weights belong to the
            pairs in this order.
        projector: "linear", "mlp" or "conv" learns P_r for each layer pair; "none" leaves P_r out and needs equal
            widths.
        distance: d(a, b): "mse" is `mean((a - b)**2)` over the width, "cosine" is 1 - cos(a, b).
        teacher: index of the teacher, in the order of the config.

    Raises:
        ValueError: `layers` has none of these forms; when the loss is computed, the config's fusion computes no weights
            of layer pairs, or not one for each pair.
    """
    check_layers(layers)

    def pairs(signals: Signals) -> list[tuple[Array, Array]]:
        return [average_if_extents_differ(*pair, signals) for pair in paired_states(signals, layers, teacher)]

    def init(key: Key, signals: Signals) -> tuple[Params, State]:
        return init_each(projector, key, pairs(signals), signals.mask.ndim), {}

    def apply(params: Params, state: State, signals: Signals, *, key: Key) -> tuple[Values, State]:
        distances = [DISTANCES[distance](*pair) for pair in project_each(projector, params, pairs(signals))]
        values = jnp.stack([mean_over_positions(value, signals.batch, signals.mask.ndim) for value in distances])
        routes = None if signals.teacher is None else signals.teacher.routes
        if routes is None or len(routes) != len(values):
            weighted = "none" if routes is None else f"{len(routes)}"
            problem = f"layers names {len(values)} paths, and the fusion computes weights for {weighted}"
            raise ValueError(f"{problem}; use gate(paths={len(values)})")
        return jnp.sum(routes * values, axis=0), state

    return Term(init, apply, needs=frozenset({"teacher"}))
