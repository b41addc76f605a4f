"""Variational information distillation: a lower bound of the mutual information of student and teacher.

Ahn, Hu, Damianou, Lawrence and Dai, Variational Information Distillation for Knowledge Transfer, CVPR 2019
(arxiv.org/abs/1904.05835).

    -log N(h_t; mu(h_s), sigma^2) = 0.5 ((mu(h_s) - h_t)^2 / sigma_c^2 + log sigma_c^2) + constant
    averaged over channels, positions and layer pairs

mu is a regressor of three products at each position with ReLU between them, sigma_c^2 = softplus(a_c) + minimum a
variance for each channel of the teacher. Both are parameters: a channel that the student cannot predict gets a large
variance and is left alone, which is what plain hints lack. Hidden states with any extent will do, also with none; the
larger of two maps is pooled to the smaller, sequences need equal lengths, and padding counts nothing.

Traps: the loss is a log-density and falls below 0. Variances are those of CHANNELS and must not be averaged. A channel
that is constant in the teacher is predicted perfectly, its variance tends to the minimum and its gradient grows with
1 / variance: raise `minimum` where the loss runs away. Published code ADDS the layer
pairs, with weight 1; here they are averaged: its 1 for 3 pairs is 3.

Config: objective.vid.term = "vid(layers='uniform')"; objective.vid.weight = 3.0
When: widths differ and parts of the teacher are beyond the student; where hints with a linear projector hurt.
Checked: published code (golden/layer_losses.npz), in value and in the gradient of all that learns.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.hidden.convolution import convolved, kernel
from jaxdistill.losses.hidden.extent import same_extent
from jaxdistill.losses.hidden.layers import LayerMap, check_layers, paired_states
from jaxdistill.losses.term import extent_mean, precise

PRODUCTS = 3  # of a regressor


def negative_log_likelihood(
    predicted: Float[Array, "*rows width"], teacher: Float[Array, "*rows width"], variance: Float[Array, " width"]
) -> Float[Array, "*rows"]:
    """Of the teacher under normal distributions, a mean over the channels, without the constant 0.5 log(2 pi)."""
    square = (precise(predicted) - precise(teacher)) ** 2
    return 0.5 * jnp.mean(square / variance + jnp.log(variance), axis=-1)


@losses.register
def vid(layers: LayerMap = "uniform", variance: float = 5.0, minimum: float = 1e-5, teacher: int = 0) -> Term:
    """The likelihood of the teacher's hidden states given the student's.

    Args:
        layers: the layer map, see `losses/layers.py`.
        variance: of each channel at first.
        minimum: the least variance.
        teacher: which teacher. Hidden states of unlike teachers have no mean, so one is chosen.

    Raises:
        ValueError: for a misspelt map, or unless 0 < minimum < variance; when it is applied, for extents that do not
            fit each other.
    """
    check_layers(layers)
    if not 0 < minimum < variance:
        raise ValueError(f"variances need 0 < minimum < variance; got minimum={minimum}, variance={variance}")

    def pairs(signals: Signals) -> list[tuple[Array, Array]]:
        return [same_extent(*pair, signals.mask.ndim) for pair in paired_states(signals, layers, teacher)]

    def init(key, signals):
        params = {}
        for number, (student, target) in enumerate(pairs(signals)):
            width = target.shape[-1]
            keys = jax.random.split(jax.random.fold_in(key, number), PRODUCTS)
            for layer, inputs in enumerate((student.shape[-1], width, width)):
                params[f"{number}/{layer}/kernel"] = kernel(keys[layer], inputs, width)
            params[f"{number}/variance"] = jnp.full(width, _softplus_inverse(variance - minimum), jnp.float32)
        return params, {}

    def apply(params, state, signals, *, key):
        values = []
        for number, (x, target) in enumerate(pairs(signals)):
            for layer in range(PRODUCTS):
                x = convolved(jax.nn.relu(x) if layer else x, params[f"{number}/{layer}/kernel"])
            spread = jax.nn.softplus(precise(params[f"{number}/variance"])) + minimum
            likelihood = negative_log_likelihood(x, target, spread)
            values.append(extent_mean(likelihood, signals.batch, signals.mask.ndim))
        return jnp.mean(jnp.stack(values), axis=0), state

    return Term(init, apply, needs=frozenset({"teacher"}))


def _softplus_inverse(x: float) -> float:
    return x + float(np.log(-np.expm1(-x)))
