"""Neuron selectivity transfer: the distribution of what a layer's neurons (channels) respond to.

Huang and Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017 (arxiv.org/abs/1707.01219),
with its polynomial kernel k(x, y) = (x . y)^2.

    f_c = channel c over the positions, divided by its norm; MMD^2 between the channels of student and teacher:
    mean_cc' k(f_c, f_c') + mean_dd' k(g_d, g_d') - 2 mean_cd k(f_c, g_d)

It compares sets of channels, in no order, so that no projector is needed and widths may differ. The larger of two maps
is pooled to the smaller one. Tokens of a sequence are positions too; padding counts nothing. States without positions,
or with one, are refused: each channel would be 1 or -1.

Traps: the norm is over POSITIONS, one for each channel. Without it large channels are all that is seen. The three terms
nearly cancel, hence products in full float32. Published code stops the gradient of the teacher's own term; here it
passes on to a teacher that learns, and is nothing for a frozen one. Published code ADDS the layer pairs with weight 50;
here they are averaged, so that its 50 for 3 pairs is 150.

Config: objective.nst.term = "nst(layers='uniform')"; objective.nst.weight = 150.0
When: as attention transfer, with more said: which patterns there are, not only where the energy is. Cost grows with
    width squared.
Checked: published code (golden/layer_losses.npz), in value and gradient.
"""

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.hidden.extent import positions, same_extent
from jaxdistill.losses.hidden.layers import LayerMap, check_layers, paired_states
from jaxdistill.losses.term import precise, stateless, unit


def squared_mmd(
    student: Float[Array, "*batch positions student_width"], teacher: Float[Array, "*batch positions teacher_width"]
) -> Float[Array, "*batch"]:
    """Squared maximum mean discrepancy between the channels' patterns under the kernel (x . y)^2."""
    f, g = unit(precise(student), axis=-2), unit(precise(teacher), axis=-2)

    def kernel_mean(a: Array, b: Array) -> Array:
        # "highest": TPUs multiply in bfloat16, and what is left of the three terms is small
        return jnp.mean(jnp.einsum("...pc,...pd->...cd", a, b, precision="highest") ** 2, axis=(-2, -1))

    return kernel_mean(f, f) + kernel_mean(g, g) - 2 * kernel_mean(f, g)


@losses.register
def nst(layers: LayerMap = "uniform", teacher: int = 0) -> Term:
    """The selectivity of the neurons of chosen layers.

    Args:
        layers: the layer map, see `losses/layers.py`.
        teacher: which teacher. Hidden states of unlike teachers have no mean, so one is chosen.

    Raises:
        ValueError: for a misspelt map; when it is applied, for states without positions or with extents that do not
            fit each other.
    """
    check_layers(layers)

    def values(signals: Signals) -> Array:
        def discrepancy(student: Array, target: Array) -> Array:
            student, target = same_extent(student, target, signals.mask.ndim)
            return squared_mmd(positions(student, signals)[0], positions(target, signals)[0])

        pairs = paired_states(signals, layers, teacher)
        return jnp.mean(jnp.stack([discrepancy(*pair) for pair in pairs]), axis=0)

    return stateless(values, needs=frozenset({"teacher"}))
