"""Patient knowledge distillation: directions of the first token's hidden states, over chosen layers.

Sun et al., Patient Knowledge Distillation for BERT Model Compression, 2019 (arxiv.org/abs/1908.09355).

    mean over layer pairs of mean over the width of (h_s / |h_s| - h_t / |h_t|)^2

The map "skip" is the paper's best (PKD-Skip): the last layer is left out, since soft targets speak for it already. Its
second one (PKD-Last) is the teacher's layers right below its last: `layers=((1, 7), (2, 8), (3, 9), (4, 10), (5, 11))`.

A trap: the paper writes a sum over the width, and its code takes the mean, as we do. Directions of 768 numbers differ
by 4 / 768 at most, so that weights are large: the paper searches 10 to 1000. A zero vector has no direction; it stays
zero, without a gradient.

The first token stands for a text only if all others can be seen from it. Of running text, where it sees itself alone,
every token is matched instead.

Config: objective.pkd.term = "pkd"; objective.pkd.weight = 100.0
When: an encoder of fewer layers is fine-tuned beside its teacher, with soft targets and labels.
Checked: against the published reduction, restated in float64, in value and gradient.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.hidden.hidden import squared_distance
from jaxdistill.losses.hidden.layers import LayerMap, check_layers, paired_states
from jaxdistill.losses.hidden.projectors import init_each, project_each
from jaxdistill.losses.term import unit


def direction_distance(
    student: Float[Array, "*rows width"], teacher: Float[Array, "*rows width"]
) -> Float[Array, "*rows"]:
    """Mean over the width of the squared difference of directions."""
    return squared_distance(unit(student), unit(teacher))


@losses.register
def pkd(layers: LayerMap = "skip", projector: Literal["none", "linear", "mlp"] = "none", teacher: int = 0) -> Term:
    """Normalised hidden states of the first token.

    Args:
        layers: the layer map, see `losses/layers.py`.
        projector: "none" needs equal widths, as the paper has them; "linear" and "mlp" learn for each pair.
        teacher: which teacher.
    """
    check_layers(layers)

    def pairs(signals: Signals) -> list[tuple[Array, Array]]:
        first = lambda states: _first_token(states, signals.mask.ndim)
        return [(first(ours), first(theirs)) for ours, theirs in paired_states(signals, layers, teacher)]

    def init(key, signals):
        return init_each(projector, key, pairs(signals), signals.mask.ndim), {}

    def apply(params, state, signals, *, key):
        values = [direction_distance(*pair) for pair in project_each(projector, params, pairs(signals))]
        return jnp.mean(jnp.stack(values), axis=0), state

    return Term(init, apply, local=False, needs=frozenset({"teacher"}))


def _first_token(states: Array, batch_dims: int) -> Array:
    """`[*batch, tokens, width] -> [*batch, width]`; states without an extent stay as they are."""
    extent = states.shape[batch_dims:-1]
    if len(extent) > 1:
        raise ValueError(f"hidden states of {list(extent)} positions have no first token; use hidden")
    return states[..., 0, :] if extent else states
