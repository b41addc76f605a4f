"""Patient knowledge distillation (PKD): match normalised hidden states of the first token at several layers.

Sun et al., Patient Knowledge Distillation for BERT Model Compression, 2019 (arxiv.org/abs/1908.09355).

    mean over layer pairs of mean over the width of (h_s / |h_s| - h_t / |h_t|)^2

h_s and h_t are the first token's hidden states in student and teacher. The layer map "skip" is the paper's best
(PKD-Skip): it leaves out the last layer, which soft targets already supervise. The paper's second map (PKD-Last) takes
the layers right below the teacher's last layer: `layers=((1, 7), (2, 8), (3, 9), (4, 10), (5, 11))`.

A trap: the paper writes a sum over the width, and its code takes the mean, as this loss does. Unit vectors of width 768
then differ by 4 / 768 at most, so weights are large: the paper searches 10 to 1000. A zero vector stays zero and has a
gradient of 0.

The first token represents a text only if it attends to all other tokens. In a causal language model (a stream with a
label for every token) it attends to itself alone, so every token is matched instead.

Config: objective.pkd.term = "pkd"; objective.pkd.weight = 100.0
When: an encoder with fewer layers than its teacher is fine-tuned with soft targets and labels.
Checked: value and gradient against the published reduction, restated in float64.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.interfaces import Term, Values
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Key, Params, Signals, State
from jaxdistill.losses.hidden.hidden import mean_squared_distance
from jaxdistill.losses.hidden.layers import LayerMap, check_layers, paired_states
from jaxdistill.losses.hidden.projectors import init_each, project_each
from jaxdistill.losses.term import unit


def direction_distance(
    student: Float[Array, "*rows width"], teacher: Float[Array, "*rows width"]
) -> Float[Array, "*rows"]:
    """Compute `mean((s / ||s|| - t / ||t||)**2)` over the width, for s = student and t = teacher."""
    return mean_squared_distance(unit(student), unit(teacher))


@losses.register
def pkd(layers: LayerMap = "skip", projector: Literal["none", "linear", "mlp"] = "none", teacher: int = 0) -> Term:
    """Build the PKD loss term `mean((s / ||s|| - t / ||t||)**2)`, for hidden states s and t of the first token.

    s belongs to a student layer, t to the teacher layer paired with it. The loss is the mean over the layer pairs. In a
    causal language model all tokens are compared, because the first token attends to no other.

    Args:
        layers: which student layer learns from which teacher layer: "uniform", "skip", "last", a range of teacher
            layers such as "6-9", or pairs such as ((1, 2), (2, 4)); see `layer_pairs`.
        projector: "none" needs equal widths, as in the paper; "linear" and "mlp" learn a map of s to the width of t,
            for each layer pair.
        teacher: index of the teacher, in the order of the config.
    """
    check_layers(layers)

    def pairs(signals: Signals) -> list[tuple[Array, Array]]:
        first = lambda states: _first_token(states, signals.mask.ndim)
        return [(first(student), first(target)) for student, target in paired_states(signals, layers, teacher)]

    def init(key: Key, signals: Signals) -> tuple[Params, State]:
        return init_each(projector, key, pairs(signals), signals.mask.ndim), {}

    def apply(params: Params, state: State, signals: Signals, *, key: Key) -> tuple[Values, State]:
        values = [direction_distance(*pair) for pair in project_each(projector, params, pairs(signals))]
        return jnp.mean(jnp.stack(values), axis=0), state

    return Term(init, apply, local=False, needs=frozenset({"teacher"}))


def _first_token(states: Array, batch_dims: int) -> Array:
    """Return the first token's states, `[*batch, tokens, width] -> [*batch, width]`.

    States without an axis of tokens, `[*batch, width]`, are returned unchanged.

    Raises:
        ValueError: the states have more than one axis between `*batch` and the width, like those of images.
    """
    extent = states.shape[batch_dims:-1]
    if len(extent) > 1:
        raise ValueError(f"hidden states of extent {list(extent)} have no first token; use the loss 'hidden'")
    return states[..., 0, :] if extent else states
