"""Attention transfer (AT): match spatial attention maps, the mean squared activation at each position.

Zagoruyko and Komodakis, Paying More Attention to Attention, 2017 (arxiv.org/abs/1612.03928), activation-based.

    a(h) = mean_c h_c^2 at each position, divided by its norm over the positions
    mean over layer pairs of mean over positions of (a(h_s) - a(h_t))^2

An attention map has no channels, so the widths may differ and no projector is needed. The larger of two maps is
average-pooled to the size of the smaller one. Tokens of a sequence are positions too, including the class token of a
vision transformer; padding is ignored. Hidden states with no positions, or with one, raise an error: their attention
map is 1 whatever they hold.

Traps: square BEFORE the mean over channels; otherwise channels of opposite sign cancel. The maps have norm 1 over all
positions, so the loss is about 1 / positions and needs a large weight. The equation of the paper is the norm of the
difference. The published code takes the mean of its square; this loss and published tables use that version. The
published code ADDS the layer pairs with weight 1000; here they are averaged, so its 1000 for 3 pairs is 3000 here.

Config: objective.attention.term = "attention_transfer(layers='uniform')"; objective.attention.weight = 3000.0
When: student and teacher see the same image at similar resolutions and differ in width. Cheap: there are no parameters.
Checked: value and gradient equal those of the published code (golden/losses.npz; maps of different sizes:
    golden/layer_losses.npz).
"""

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.hidden.extent import flatten_positions, pool_to_same_extent
from jaxdistill.losses.hidden.layers import LayerMap, check_layers, paired_states
from jaxdistill.losses.term import precise, stateless, unit


def attention_map(states: Float[Array, "*batch positions width"]) -> Float[Array, "*batch positions"]:
    """Compute the mean squared activation over the channels, normalised to a unit vector over the positions."""
    return unit(jnp.mean(precise(states) ** 2, axis=-1), axis=-1)


@losses.register
def attention_transfer(layers: LayerMap = "uniform", teacher: int = 0) -> Term:
    """Compare the attention maps of selected layers, position by position.

    Args:
        layers: the layer map; see `losses/hidden/layers.py`.
        teacher: index of the teacher. Hidden states of different teachers have no common mean, so one is selected.

    Raises:
        ValueError: the layer map is unknown; when the term is applied, hidden states have no positions, or their
            extents cannot be matched.
    """
    check_layers(layers)

    def values(signals: Signals) -> Array:
        def distance(student: Array, target: Array) -> Array:
            student, target = pool_to_same_extent(student, target, signals.mask.ndim)
            (student, count), (target, _) = flatten_positions(student, signals), flatten_positions(target, signals)
            return jnp.sum((attention_map(student) - attention_map(target)) ** 2, axis=-1) / count

        pairs = paired_states(signals, layers, teacher)
        return jnp.mean(jnp.stack([distance(*pair) for pair in pairs]), axis=0)

    return stateless(values, needs=frozenset({"teacher"}))
