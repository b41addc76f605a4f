"""The flow of the solution procedure: how one layer's channels go together with a later layer's.

Yim, Joo, Bae and Kim, A Gift from Knowledge Distillation, CVPR 2017
(openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html).

    G[c, d] = mean over positions of first_c second_d, for two layers of the same network
    mean over c, d of (G_s - G_t)^2, for each two neighbours in the list of layer pairs, averaged

Of two layers of one network the larger map is pooled to the smaller. Positions are averaged away, so that student and
teacher may differ in extent, but NOT in width: unlike widths are refused. Tokens of a sequence are positions too;
padding counts nothing. Hidden states without positions, or with one, are refused.

Traps: a map of a single pair has no flow. The matrix grows with the square of the states, the loss with their fourth
power: where layers are not normalised its weight deserves care. The paper brings maps to one size by max pooling and
adds up the squares; the published code that made the benchmark's tables averages in both places, as is done here, so
that the weight does not depend on widths. It ADDS the flows, with weight 50; here they are averaged. Both train by this
loss alone first, and by labels afterwards: weights that are `phases` do so.

Config: objective.fsp.term = "fsp(layers=((1, 5), (2, 10), (3, 15)))"
When: student and teacher are of one family with equal widths at the stages' ends, and the teacher is deeper.
Checked: published code (golden/layer_losses.npz), in value and gradient.
"""

import itertools

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.hidden.extent import positions, same_extent
from jaxdistill.losses.hidden.layers import LayerMap, check_layers, paired_states
from jaxdistill.losses.term import precise, stateless


def flow(
    first: Float[Array, "*batch positions first_width"], second: Float[Array, "*batch positions second_width"]
) -> Float[Array, "*batch first_width second_width"]:
    """Mean over the positions of the products of two layers' channels."""
    return jnp.einsum("...pc,...pd->...cd", precise(first), precise(second)) / first.shape[-2]


@losses.register
def fsp(layers: LayerMap = "uniform", teacher: int = 0) -> Term:
    """Flows between neighbouring layers of the map.

    Args:
        layers: the layer map, see `losses/layers.py`, of at least two pairs.
        teacher: which teacher. Hidden states of unlike teachers have no mean, so one is chosen.

    Raises:
        ValueError: for a misspelt map; when it is applied, for fewer than two pairs, for unlike widths, and for states
            without positions.
    """
    check_layers(layers)

    def values(signals: Signals) -> Array:
        def network(first: Array, second: Array) -> Array:
            first, second = same_extent(first, second, signals.mask.ndim)
            (first, count), (second, _) = positions(first, signals), positions(second, signals)
            real = first.shape[-2] / jnp.asarray(count, first.dtype)
            return flow(first, second) * real[..., None, None]

        pairs = paired_states(signals, layers, teacher)
        if len(pairs) < 2:
            raise ValueError(f"a flow is between two layers, and {layers!r} names one pair; name at least two")
        for student, target in pairs:
            if student.shape[-1] != target.shape[-1]:
                widths = f"student {student.shape[-1]}, teacher {target.shape[-1]}"
                raise ValueError(f"widths differ ({widths}); choose layers of equal widths, or 'nst', which allows it")
        distances = []
        for (student, target), (student_next, target_next) in itertools.pairwise(pairs):
            difference = network(student, student_next) - network(target, target_next)
            distances.append(jnp.mean(difference**2, axis=(-2, -1)))
        return jnp.mean(jnp.stack(distances), axis=0)

    return stateless(values, needs=frozenset({"teacher"}))
