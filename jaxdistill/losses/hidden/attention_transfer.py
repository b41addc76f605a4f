"""Attention transfer (AT): match spatial attention maps, the mean squared activation at each position.

Zagoruyko and Komodakis, Paying More Attention to Attention, 2017 (arxiv.org/abs/1612.03928), activation-based.

    a(h) = mean_c h_c^2 at each position, divided by its norm over the positions
    mean over layer pairs of mean over positions of (a(h_s) - a(h_t))^2

h_c is channel c of a hidden state h. An attention map has no channels, so the widths of student and teacher may differ
and no projector is needed. The larger of two maps is average-pooled to the size of the smaller one. Tokens of a
sequence are positions too, including the class token of a vision transformer; padding is ignored. Hidden states with no
positions, or with one, raise an error: their attention map is 1 whatever they hold.

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
    """Compute `a / ||a||`, with a = mean of `states**2` over the width, and the norm over the positions."""
    return unit(jnp.mean(precise(states) ** 2, axis=-1), axis=-1)


@losses.register
def attention_transfer(layers: LayerMap = "uniform", teacher: int = 0) -> Term:
    """Build the attention transfer loss term: the mean over positions of (a_s - a_t)^2.

    a is the attention map of a hidden state h: the mean of h^2 over the channels at each position, divided by its norm
    over the positions. a_s is that of a student layer, a_t that of the teacher layer paired with it. The larger map is
    first average-pooled to the size of the smaller one. The loss is the mean over the layer pairs.

    Args:
        layers: which student layer learns from which teacher layer: "uniform", "skip", "last", a range of teacher
            layers such as "6-9", or pairs such as ((1, 2), (2, 4)); see `layer_pairs`.
        teacher: index of the teacher, in the order of the config. Only one teacher is used, because the channels of
            different teachers do not correspond and cannot be averaged.

    Raises:
        ValueError: `layers` has none of these forms; when the loss is computed, hidden states have fewer than two
            positions, or spatial or sequence axes that cannot be pooled to the same size.
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
