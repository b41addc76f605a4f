"""Flow of solution procedure (FSP): match the products between the channels of neighbouring layers.

Yim, Joo, Bae and Kim, A Gift from Knowledge Distillation, CVPR 2017
(openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html).

    G[c, d] = mean over positions of first_c second_d, for two layers of the same network
    mean over c, d of (G_s - G_t)^2, for each two neighbours in the list of layer pairs, averaged

first_c is channel c of one layer, second_d channel d of the next; the matrix G is called the flow between these layers,
G_s the student's and G_t the teacher's. Within each network, the larger of the two maps is pooled to the size of the
smaller one. G is a mean over positions, so student and teacher may differ in resolution, but NOT in width: different
widths raise an error. Tokens of a sequence are positions too; padding is ignored. Hidden states with no positions, or
with one, raise an error.

Traps: a layer map needs at least two pairs. G grows with the square of the hidden states and the loss with their
fourth power, so choose the weight with care where layers are not normalised. The paper brings maps to one size by max
pooling and sums the squares. The published code of the RepDistiller benchmark averages in both places, as this loss
does, so that the weight does not depend on widths. That code ADDS the flows, with weight 50; here they are averaged.
The paper and that code train with this loss alone first and with labels afterwards: give the weights a `phases`
schedule.

Config: objective.fsp.term = "fsp(layers=((1, 5), (2, 10), (3, 15)))"
When: student and teacher belong to one family of networks, have equal widths at the end of each block of layers, and
    the teacher is deeper.
Checked: value and gradient equal those of the published code (golden/layer_losses.npz).
"""

import itertools

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.hidden.extent import flatten_positions, pool_to_same_extent
from jaxdistill.losses.hidden.layers import LayerMap, check_layers, paired_states
from jaxdistill.losses.term import precise, stateless


def flow(
    first: Float[Array, "*batch positions first_width"], second: Float[Array, "*batch positions second_width"]
) -> Float[Array, "*batch first_width second_width"]:
    """Compute the flow matrix of two layers: G[c, d] is the mean over positions p of `first[p, c] * second[p, d]`."""
    return jnp.einsum("...pc,...pd->...cd", precise(first), precise(second)) / first.shape[-2]


@losses.register
def fsp(layers: LayerMap = "uniform", teacher: int = 0) -> Term:
    """Build the FSP loss term: the mean of (G_s - G_t)^2, for flow matrices G of student and teacher.

    The flow matrix of two layers of one network is G[c, d] = mean over positions p of first[p, c] * second[p, d]. There
    is one G_s and one G_t for each two consecutive pairs of `layers`. The loss is the mean over c, d and these
    matrices.

    Args:
        layers: which student layer learns from which teacher layer: "uniform", "skip", "last", a range of teacher
            layers such as "6-9", or pairs such as ((1, 2), (2, 4)); see `layer_pairs`. At least two pairs are needed.
        teacher: index of the teacher, in the order of the config. Only one teacher is used, because the channels of
            different teachers do not correspond and cannot be averaged.

    Raises:
        ValueError: `layers` has none of these forms; when the loss is computed, `layers` has fewer than two pairs, the
            student layer and the teacher layer of a pair differ in width, or hidden states have fewer than two
            positions or cannot be pooled to the same size.
    """
    check_layers(layers)

    def values(signals: Signals) -> Array:
        def network_flow(first: Array, second: Array) -> Array:
            first, second = pool_to_same_extent(first, second, signals.mask.ndim)
            (first, count), (second, _) = flatten_positions(first, signals), flatten_positions(second, signals)
            # padding is 0 in the sum: turn the mean over all positions into the mean over real ones
            scale = first.shape[-2] / jnp.asarray(count, first.dtype)
            return flow(first, second) * scale[..., None, None]

        pairs = paired_states(signals, layers, teacher)
        if len(pairs) < 2:
            raise ValueError(f"fsp needs at least two layer pairs, and layers={layers!r} names one; name another pair")
        for student, target in pairs:
            if student.shape[-1] != target.shape[-1]:
                widths = f"student {student.shape[-1]}, teacher {target.shape[-1]}"
                raise ValueError(f"widths differ ({widths}); choose layers of equal width, or 'nst', which allows it")
        distances = []
        for (student, target), (student_next, target_next) in itertools.pairwise(pairs):
            difference = network_flow(student, student_next) - network_flow(target, target_next)
            distances.append(jnp.mean(difference**2, axis=(-2, -1)))
        return jnp.mean(jnp.stack(distances), axis=0)

    return stateless(values, needs=frozenset({"teacher"}))
