"""Neuron selectivity transfer (NST): match the distributions of channel activation patterns by squared MMD.

Huang and Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017 (arxiv.org/abs/1707.01219),
with its polynomial kernel k(x, y) = (x . y)^2.

    f_c = channel c over the positions, divided by its norm; MMD^2 between the channels of student and teacher:
    mean_cc' k(f_c, f_c') + mean_dd' k(g_d, g_d') - 2 mean_cd k(f_c, g_d)

The loss compares unordered sets of channels, so widths may differ and no projector is needed. The larger of two maps is
average-pooled to the size of the smaller one. Tokens of a sequence are positions too; padding is ignored. Hidden states
with no positions, or with one, raise an error: each channel would be 1 or -1.

Traps: normalise each channel over its POSITIONS. Otherwise channels with large activations dominate the loss. The three
terms nearly cancel, so the products are computed in full float32. The published code stops the gradient of the
teacher's own term; here that gradient reaches a teacher that is trained, and makes no difference for a frozen one. The
published code ADDS the layer pairs with weight 50; here they are averaged, so its 50 for 3 pairs is 150 here.

Config: objective.nst.term = "nst(layers='uniform')"; objective.nst.weight = 150.0
When: as for attention transfer, but to match which patterns occur and not only where the activations are large. The
    cost grows with the square of the width.
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
    """Compute the squared maximum mean discrepancy between the channels' patterns under the kernel (x . y)^2."""
    f, g = unit(precise(student), axis=-2), unit(precise(teacher), axis=-2)

    def kernel_mean(a: Array, b: Array) -> Array:
        # "highest": TPUs multiply in bfloat16, and the three terms nearly cancel
        return jnp.mean(jnp.einsum("...pc,...pd->...cd", a, b, precision="highest") ** 2, axis=(-2, -1))

    return kernel_mean(f, f) + kernel_mean(g, g) - 2 * kernel_mean(f, g)


@losses.register
def nst(layers: LayerMap = "uniform", teacher: int = 0) -> Term:
    """Compare the channel patterns of selected layers.

    Args:
        layers: the layer map; see `losses/hidden/layers.py`.
        teacher: index of the teacher. Hidden states of different teachers have no common mean, so one is selected.

    Raises:
        ValueError: the layer map is unknown; when the term is applied, hidden states have no positions, or their
            extents cannot be matched.
    """
    check_layers(layers)

    def values(signals: Signals) -> Array:
        def discrepancy(student: Array, target: Array) -> Array:
            student, target = pool_to_same_extent(student, target, signals.mask.ndim)
            return squared_mmd(flatten_positions(student, signals)[0], flatten_positions(target, signals)[0])

        pairs = paired_states(signals, layers, teacher)
        return jnp.mean(jnp.stack([discrepancy(*pair) for pair in pairs]), axis=0)

    return stateless(values, needs=frozenset({"teacher"}))
