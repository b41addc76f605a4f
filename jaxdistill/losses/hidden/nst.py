"""Neuron selectivity transfer (NST): match the distributions of channel activation patterns by squared MMD.

Huang and Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017 (arxiv.org/abs/1707.01219),
with its polynomial kernel k(x, y) = (x . y)^2.

    f_c = channel c over the positions, divided by its norm; MMD^2 between the channels of student and teacher:
    mean_cc' k(f_c, f_c') + mean_dd' k(g_d, g_d') - 2 mean_cd k(f_c, g_d)

f_c are the channels of the student's layer, g_d those of the teacher's. The loss compares unordered sets of channels,
so widths may differ and no projector is needed. The larger of two maps is average-pooled to the size of the smaller
one. Tokens of a sequence are positions too; padding is ignored. Hidden states with no positions, or with one, raise an
error: each normalised channel would be 1 or -1, whatever it holds.

Traps: normalise each channel over its POSITIONS. Otherwise channels with large activations dominate the loss. The three
terms nearly cancel, so the products are computed in full float32. The published code stops the gradient of the
teacher's own term, mean_dd' k(g_d, g_d'). Here that gradient reaches a teacher that is trained; for a frozen teacher it
makes no difference. The published code ADDS the layer pairs with weight 50; here they are averaged, so its 50 for 3
pairs is 150 here.

Config: objective.nst.term = "nst(layers='uniform')"; objective.nst.weight = 150.0
When: use it instead of `attention_transfer` to match which activation patterns occur, and not only where activations
    are large. The cost grows with the square of the width.
Checked: value and gradient equal those of the published code (golden/layer_losses.npz).
"""

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.hidden.extent import flatten_positions, pool_to_same_extent
from jaxdistill.losses.hidden.layers import LayerMap, check_layers, paired_states
from jaxdistill.losses.term import precise, stateless, unit


def squared_mmd(
    student: Float[Array, "*batch positions student_width"], teacher: Float[Array, "*batch positions teacher_width"]
) -> Float[Array, "*batch"]:
    """Compute the squared maximum mean discrepancy (MMD) between the channels f of the student and g of the teacher.

        mean_cc' k(f_c, f_c') + mean_dd' k(g_d, g_d') - 2 mean_cd k(f_c, g_d),   k(x, y) = (x . y)^2

    A channel is a vector over the positions, divided by its norm. mean_cc' is the mean over all pairs of channels.
    """
    f, g = unit(precise(student), axis=-2), unit(precise(teacher), axis=-2)

    def kernel_mean(a: Array, b: Array) -> Array:
        # "highest": TPUs multiply in bfloat16, and the three terms nearly cancel
        return jnp.mean(jnp.einsum("...pc,...pd->...cd", a, b, precision="highest") ** 2, axis=(-2, -1))

    return kernel_mean(f, f) + kernel_mean(g, g) - 2 * kernel_mean(f, g)


@losses.register
def nst(layers: LayerMap = "uniform", teacher: int = 0) -> Term:
    """Build the NST loss term: the squared maximum mean discrepancy between the channels of student and teacher.

        mean_cc' k(f_c, f_c') + mean_dd' k(g_d, g_d') - 2 mean_cd k(f_c, g_d),   k(x, y) = (x . y)^2

    f_c is channel c of a student layer, g_d channel d of the teacher layer paired with it. A channel is a vector over
    the positions, divided by its norm. The loss is the mean over the layer pairs.

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
        def discrepancy(student: Array, target: Array) -> Array:
            student, target = pool_to_same_extent(student, target, signals.mask.ndim)
            return squared_mmd(flatten_positions(student, signals)[0], flatten_positions(target, signals)[0])

        pairs = paired_states(signals, layers, teacher)
        return jnp.mean(jnp.stack([discrepancy(*pair) for pair in pairs]), axis=0)

    return stateless(values, needs=frozenset({"teacher"}))
