"""Attention transfer: where a layer looks, the energy at each position, whatever its channels are.

Zagoruyko and Komodakis, Paying More Attention to Attention, 2017 (arxiv.org/abs/1612.03928), activation-based.

    a(h) = mean_c h_c^2 over the positions, divided by its norm over them
    mean over layer pairs of mean over positions of (a(h_s) - a(h_t))^2

A sum of squares needs no projector: widths may differ. The larger of two maps is pooled to the smaller one. A
sequence's tokens are positions too, those of a vision transformer with its class token among them; padding counts
nothing. Hidden states without positions, or with one, are refused: their attention is 1 whatever they hold.

Traps: square BEFORE the mean over channels, or channels of opposite sign hide each other; the size lies in the norm
over all positions, so that the loss is about 1 / positions and its weight large. The equation of the paper is the norm
of the difference, its published code the mean of its square, which is meant here and in tables. Published code ADDS the
layer pairs with weight 1000; here they are averaged, so that its 1000 for 3 pairs is 3000.

Config: objective.attention.term = "attention_transfer(layers='uniform')"; objective.attention.weight = 3000.0
When: student and teacher see the same image at similar resolutions and differ in width; cheap, nothing is learned.
Checked: published code (golden/losses.npz; maps of unlike extents: golden/layer_losses.npz), in value and gradient.
"""

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.hidden.extent import positions, same_extent
from jaxdistill.losses.hidden.layers import LayerMap, check_layers, paired_states
from jaxdistill.losses.term import precise, stateless, unit


def attention_map(states: Float[Array, "*batch positions width"]) -> Float[Array, "*batch positions"]:
    """Mean over the channels of the square, as a unit vector over the positions."""
    return unit(jnp.mean(precise(states) ** 2, axis=-1), axis=-1)


@losses.register
def attention_transfer(layers: LayerMap = "uniform", teacher: int = 0) -> Term:
    """Attention maps of chosen layers, position by position.

    Args:
        layers: the layer map, see `losses/layers.py`.
        teacher: which teacher. Hidden states of unlike teachers have no mean, so one is chosen.

    Raises:
        ValueError: for a misspelt map; when it is applied, for states without positions or with extents that do not
            fit each other.
    """
    check_layers(layers)

    def values(signals: Signals) -> Array:
        def distance(student: Array, target: Array) -> Array:
            student, target = same_extent(student, target, signals.mask.ndim)
            (student, count), (target, _) = positions(student, signals), positions(target, signals)
            return jnp.sum((attention_map(student) - attention_map(target)) ** 2, axis=-1) / count

        pairs = paired_states(signals, layers, teacher)
        return jnp.mean(jnp.stack([distance(*pair) for pair in pairs]), axis=0)

    return stateless(values, needs=frozenset({"teacher"}))
